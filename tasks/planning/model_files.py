"""What a model's weights add to a run: asked of the hub, and looked for in its cache on this
machine, without loading or fetching anything."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from data_contracts.configs import ModelConfig
from data_contracts.runtime import DownloadSettings
from sdrpn_core.models.hub import local_folder
from sdrpn_core.models.loading import is_commit, model_source
from tasks.artifacts.stage import NotMade
from tasks.fetching.addresses import existing, free_bytes
from tasks.fetching.hub_remote import HubModel, ask_model, hub_cache, is_cached
from tasks.fetching.remote import Hiccup, Unavailable
from tasks.models import pinned, profile_of
from tasks.planning.files import PlannedFile

_FORMATS = (("model", "safetensors"), ("pytorch_model", "bin"))
"""What transformers looks for, in this order; each in one piece, then in several."""


@dataclass(frozen=True)
class PlannedModel:
    """The weights of a run's model, which the hub's client fetches when a stage first needs it."""

    name: str
    """On the hub."""
    folder: Path
    """The hub's cache."""
    free_bytes: int
    """On the disk of the cache."""
    shares_disk: bool
    """With the folder that the run's other files are fetched to."""
    commit: str | None = None
    """That a run would work with; None if nobody says."""
    files: tuple[PlannedFile, ...] = ()
    """Weights, as the hub lists them; empty if it could not be asked."""
    problem: str | None = None
    """Why it is not known how much is still to be fetched."""
    is_refused: bool = False
    """The hub answers that it does not have the model, or not for this user."""

    @property
    def num_bytes(self) -> int:
        """Of all weights, as far as the hub lists them."""
        return sum(file.num_bytes or 0 for file in self.files)

    @property
    def missing_bytes(self) -> int | None:
        """Still to be fetched; None if that is not known."""
        if self.problem is not None:
            return None
        return sum(file.num_missing or 0 for file in self.files)


def planned_model(
    model: ModelConfig, settings: DownloadSettings, downloads: Path
) -> PlannedModel | None:
    """The weights that a run needs; None for a model in a folder of this machine.

    A hub that cannot be asked is no error: what is in the cache may do, and else ``problem`` says
    why the size is not known.

    Args:
        model: of the run.
        settings: patience with the hub.
        downloads: where the run's other files are fetched to.
    """
    profile = profile_of(model)
    source = model_source(profile.model_id)
    if Path(source).is_dir():
        return None
    name = source if profile.revision is None else f"{source}@{profile.revision}"
    cache = hub_cache()
    shares_disk = existing(cache).stat().st_dev == existing(downloads).stat().st_dev
    place = (name, cache, free_bytes(cache), shares_disk)
    try:
        found = ask_model(source, profile.revision, settings)
    except (Hiccup, Unavailable) as error:
        known = PlannedModel(*place, _commit_in_cache(source, profile.revision))
        if _is_cached(source, profile.revision):
            return known
        return replace(known, problem=str(error), is_refused=isinstance(error, Unavailable))
    files = _files(found)
    problem = None if files else "the hub lists no weights under the usual names"
    return PlannedModel(*place, found.commit, files, problem)


def pinned_as_planned(model: ModelConfig, planned: PlannedModel | None) -> ModelConfig:
    """What ``pinned`` would give a run, without asking the hub again or fetching anything.

    Args:
        model: of the run.
        planned: what was found out of its weights.

    Raises:
        NotMade: if nobody says which commit a run would work with.
    """
    if planned is None:
        return pinned(model)
    if planned.commit is None:
        raise NotMade(f"{planned.name}: its commit is not known")
    return pinned(model.model_copy(update={"revision": planned.commit}))


def _files(found: HubModel) -> tuple[PlannedFile, ...]:
    return tuple(
        PlannedFile(
            "model",
            f"hf://{found.repo}@{found.commit}/{name}",
            found.files[name].num_bytes,
            found.files[name].sha256,
            found.licence,
            num_missing=None if is_cached(found, name) else found.files[name].num_bytes or 0,
        )
        for name in _weights(found.files)
    )


def _weights(names: Iterable[str]) -> list[str]:
    """Those of a repository's files that transformers loads."""
    given = sorted(names)
    for stem, suffix in _FORMATS:
        if f"{stem}.{suffix}" in given:
            return [f"{stem}.{suffix}"]
        part = re.compile(rf"{stem}-\d+-of-\d+\.{suffix}")
        if parts := [name for name in given if part.fullmatch(name)]:
            return parts
    return []


def _is_cached(source: str, revision: str | None) -> bool:
    """Whether an earlier run left all weights."""
    folder = local_folder(source, revision)
    if folder is None:
        return False
    weights = _weights(path.name for path in folder.iterdir() if path.exists())
    numbers = [re.search(r"-of-(\d+)\.", name) for name in weights]
    return bool(weights) and len(weights) == max(int(n[1]) if n else 1 for n in numbers)


def _commit_in_cache(source: str, revision: str | None) -> str | None:
    """What a run would go on with if the hub stays silent; a commit stands for itself."""
    if is_commit(revision):
        return revision
    folder = local_folder(source, revision)
    return None if folder is None else folder.name
