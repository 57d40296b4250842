"""Sources whose records a plan does not read, so that it cannot tell what is made of them: their
files are not all here, or reading would take too long."""

from collections.abc import Mapping, Sequence

from data_contracts.addresses import concealed
from data_contracts.configs import PipelineConfig
from data_contracts.enums import Stage
from data_contracts.errors import SdrpnError, root_cause
from data_contracts.sources import (
    BenchmarkSource,
    EvaluationSource,
    ImageFolder,
    ParquetSource,
    SceneSource,
)
from tasks.artifacts.store import ArtifactStore
from tasks.fetching.addresses import must_be_fetched
from tasks.fetching.transient import is_transient
from tasks.planning.files import PlannedFile
from tasks.planning.made_so_far import MadeSoFar
from tasks.planning.questions import sources_of
from tasks.planning.rewriting import READ_LIMIT

_GIB = 1 << 30


def unread_sources(
    config: PipelineConfig, store: ArtifactStore, by_source: Mapping[str, Sequence[PlannedFile]]
) -> dict[str, MadeSoFar]:
    """Downloads that count as still to be made, by source; most with the reason.

    Args:
        config: of the run.
        store: where it keeps what it makes.
        by_source: what is known of the sources' files.
    """
    try:
        # Without any download nothing can have been made of one: there is no need for reasons.
        is_empty = not store.storage.folders(Stage.DOWNLOAD.value)
    except (SdrpnError, OSError) as error:
        if not is_transient(error):
            raise
        silent = MadeSoFar(problem=f"{store.root}: {root_cause(error)}")
        return {source.name: silent for source in sources_of(config)}
    found: dict[str, MadeSoFar] = {}
    for source in sources_of(config):
        reason = _reason(source, by_source[source.name])
        has_records = not isinstance(source, SceneSource | BenchmarkSource)
        if is_empty and (reason or has_records):
            found[source.name] = MadeSoFar()
        elif reason:
            found[source.name] = MadeSoFar(problem=reason)
    return found


def _reason(source: EvaluationSource, files: Sequence[PlannedFile]) -> str | None:
    match source:
        case SceneSource():
            return None
        case BenchmarkSource():
            return None if all(file.is_listed for file in files) else "a server does not answer"
    if any(file.problem for file in files):
        return "a server does not answer"
    if not all(file.is_here for file in files):
        return "files are still to be fetched"
    if any(file.num_rewritten for file in files):
        return "files are still to be rewritten"
    num_read = sum(file.num_read for file in files)
    if num_read > READ_LIMIT:
        return f"{num_read / _GIB:.0f} GiB would have to be read"
    if not isinstance(source, ParquetSource):
        for place in source.image_places:
            if isinstance(place, ImageFolder) and must_be_fetched(place.uri):
                return f"{concealed(place.uri)} would have to be asked for each image"
    return None
