"""What a run will fetch, make and cost, before it starts: facts where servers give them, and
estimates that say so."""

from dataclasses import dataclass

from data_contracts.configs import PipelineConfig, RuntimeConfig
from data_contracts.sources import SceneSource
from sdrpn_core.reference.backgrounds import ScenesUnavailable, photograph_folder
from tasks.fetching.addresses import downloads_folder, free_bytes
from tasks.model_files import PlannedModel, planned_model
from tasks.models import profile_of
from tasks.planned_files import PlannedFile, planned_files, unique_files
from tasks.planned_stages import PlannedStage, num_questions, planned_stages, sources_of

_GIB = 1 << 30
_ATTENTION_BYTES = 8_000
"""Two maps of 576 cells, a label grid and text, compressed."""


@dataclass(frozen=True)
class RunPlan:
    """A run before it starts."""

    files: tuple[PlannedFile, ...]
    """Of the sources."""
    model: PlannedModel | None
    """None if its weights are in a folder of this machine."""
    stages: tuple[PlannedStage, ...]
    """All, in the order they run."""
    fetch_bytes: int
    convert_bytes: int
    """Of Parquet files and gzipped archives rewritten beside them; about as much as they have."""
    converted_bytes: int
    """Of these, what an earlier run may have rewritten, because the files are here."""
    copied_bytes: int
    """Of archives that go into the store."""
    store_bytes: int
    reserve_bytes: int
    """What a download must leave free."""
    free_bytes: int
    downloads_folder: str
    problems: tuple[str, ...]
    """What must be done before the run can get past its downloads."""

    @property
    def gpu_hours(self) -> float:
        """Over all stages that can be estimated, on one A6000-class card."""
        return sum(stage.gpu_hours or 0.0 for stage in self.stages)

    @property
    def is_estimated(self) -> bool:
        """Whether all stages can be."""
        return all(stage.gpu_hours is not None for stage in self.stages)

    @property
    def unknown_files(self) -> tuple[PlannedFile, ...]:
        """Files whose servers could not be asked; what they would add is in no figure."""
        return tuple(file for file in self.files if file.problem is not None)

    @property
    def needed_bytes(self) -> int:
        """Of the disk that files are fetched to, what stays free included."""
        made = self.fetch_bytes + self.convert_bytes + self.copied_bytes + self.store_bytes
        model = self.model
        weights = (model.missing_bytes or 0) if model is not None and model.shares_disk else 0
        return made + weights + self.reserve_bytes

    @property
    def fits(self) -> bool:
        """Whether what is fetched and made fits on the disk that files are fetched to."""
        return self.needed_bytes <= self.free_bytes

    @property
    def may_fit(self) -> bool:
        """The same if an earlier run rewrote all that it can have."""
        return self.needed_bytes - self.converted_bytes <= self.free_bytes


def plan_run(config: PipelineConfig, runtime: RuntimeConfig) -> RunPlan:
    """Stages, sizes, shards, GPU time and disk of a run.

    Servers are given little time: what does not answer stays unknown.

    Raises:
        SdrpnError: if a file does not exist.
    """
    sources = sources_of(config)
    impatient = _impatient(runtime)
    by_source = planned_files(sources, impatient, allow_silence=True)
    files = unique_files(by_source)
    folder = downloads_folder(runtime)
    model = planned_model(config.model, impatient.downloads, folder)
    numbers = {s.name: num_questions(config, s, by_source[s.name]) for s in sources}
    rewritten = [file for file in files if file.is_rewritten]
    return RunPlan(
        files=files,
        model=model,
        stages=planned_stages(config, numbers),
        fetch_bytes=sum(file.num_missing or 0 for file in files),
        convert_bytes=sum(file.num_bytes or 0 for file in rewritten),
        converted_bytes=sum(file.num_bytes or 0 for file in rewritten if file.is_here),
        copied_bytes=sum(file.num_bytes or 0 for file in files if file.is_copied),
        store_bytes=sum(number or 0 for number in numbers.values()) * _ATTENTION_BYTES,
        reserve_bytes=int(runtime.downloads.free_gib * _GIB),
        free_bytes=free_bytes(folder),
        downloads_folder=str(folder),
        problems=tuple(problem for problem in (_no_scenes(config), _no_model(model)) if problem),
    )


def _impatient(runtime: RuntimeConfig) -> RuntimeConfig:
    """Settings for asking what can wait for an answer until the run itself."""
    settings = runtime.downloads
    quick = {
        "max_attempts": min(settings.max_attempts, 2),
        "connect_timeout": min(settings.connect_timeout, 5.0),
        "read_timeout": min(settings.read_timeout, 10.0),
        "first_wait": min(settings.first_wait, 0.5),
        "max_wait": min(settings.max_wait, 5.0),
    }
    return runtime.model_copy(update={"downloads": settings.model_copy(update=quick)})


def _no_scenes(config: PipelineConfig) -> str | None:
    """Scenes that cannot be generated: a source's, or those that calibrate the model."""
    has_scenes = any(isinstance(source, SceneSource) for source in sources_of(config))
    if profile_of(config.model).is_calibrated and not has_scenes:
        return None
    try:
        photograph_folder()
    except ScenesUnavailable as error:
        return str(error)
    return None


def _no_model(model: PlannedModel | None) -> str | None:
    """A model that the hub refuses, and that is not in its cache either."""
    if model is None or not model.is_refused:
        return None
    return f"model {model.name}: {model.problem}"
