"""What a run will fetch, make and cost, before it starts: facts where servers and the store give
them, and estimates that say so."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from data_contracts.configs import PipelineConfig
from data_contracts.enums import Stage
from data_contracts.runtime import RuntimeConfig
from data_contracts.sources import SceneSource
from sdrpn_core.models.devices import resolve_device
from sdrpn_core.models.dimensions import model_dimensions
from sdrpn_core.reference.backgrounds import ScenesUnavailable, photograph_folder
from tasks.fetching.addresses import downloads_folder, free_bytes
from tasks.models import profile_of
from tasks.planning.files import PlannedFile, planned_files, unique_files
from tasks.planning.model_files import PlannedModel, planned_model
from tasks.planning.questions import Certainty, Made, num_questions, sources_of
from tasks.planning.stages import PlannedStage, planned_stages

_GIB = 1 << 30
_GO_ON_FROM_STEPS = (Stage.CALIBRATE, Stage.TRAIN_RPN)
"""These load the model even if their last resume point is at the end."""


@dataclass(frozen=True)
class Answers:
    """What servers say of a run's files."""

    by_source: Mapping[str, tuple[PlannedFile, ...]]
    model: PlannedModel | None
    """None if its weights are in a folder of this machine."""


@dataclass(frozen=True)
class RunPlan:
    """A run before it starts."""

    files: tuple[PlannedFile, ...]
    """Of the sources."""
    model: PlannedModel | None
    """None if its weights are in a folder of this machine, or nothing is left that needs them."""
    stages: tuple[PlannedStage, ...]
    """All, in the order they run."""
    fetch_bytes: int
    convert_bytes: int
    """Of files that are still to be rewritten; what is written has about as many."""
    copied_bytes: int
    """Of archives that are still to go into the store."""
    reserve_bytes: int
    """What a download must leave free."""
    free_bytes: int
    downloads_folder: str
    are_sizes_guessed: bool
    """Whether the model's configuration, which tells how large its parts are, is still to come, and
    something is left that loads the model."""
    is_on_cpu: bool
    """Whether a run on this machine, with its settings, would use no GPU."""
    problems: tuple[str, ...]
    """What must be done before the run can get past its downloads."""

    @property
    def gpu_hours(self) -> float:
        """Of what is left of all stages that can be estimated, of an A6000-class card."""
        return sum(stage.gpu_hours or 0.0 for stage in self.stages)

    @property
    def is_estimated(self) -> bool:
        """Whether all stages can be."""
        return all(stage.gpu_hours is not None for stage in self.stages)

    @property
    def is_lower_bound(self) -> bool:
        """Whether more bytes may be left than can be estimated."""
        return bool(self.unknown_files) or self.has_uncounted

    @property
    def has_uncounted(self) -> bool:
        """Whether there may be many more questions than can be told."""
        left = (stage.certainty for stage in self.stages if not stage.is_done)
        return any(one is Certainty.AT_LEAST for one in left)

    @property
    def is_done(self) -> bool:
        """Whether a run would make nothing."""
        return all(stage.is_done for stage in self.stages)

    @property
    def store_bytes(self) -> int:
        """Of what is still to be stored, as far as it is known; copied images of folders are not
        counted."""
        return self.copied_bytes + sum(stage.store_bytes for stage in self.stages)

    @property
    def unknown_files(self) -> tuple[PlannedFile, ...]:
        """Files whose servers could not be asked; what they would add is in no figure."""
        return tuple(file for file in self.files if file.problem is not None)

    @property
    def unknown_stages(self) -> tuple[PlannedStage, ...]:
        """Stages of which it could not be found out whether they are made; they count as not."""
        return tuple(stage for stage in self.stages if stage.made.problem is not None)

    @property
    def has_unknown_model(self) -> bool:
        """Whether it is not known which commit of the model a run would work with, so that nothing
        that is made with a model can be looked for."""
        has_questions = any(s.is_done for s in self.stages if s.stage is Stage.BUILD_JSONL)
        return has_questions and self.model is not None and self.model.commit is None

    @property
    def needed_bytes(self) -> int:
        """Of the disk that files are fetched to, what stays free included."""
        made = self.fetch_bytes + self.convert_bytes + self.store_bytes
        model = self.model
        weights = (model.missing_bytes or 0) if model is not None and model.shares_disk else 0
        return made + weights + self.reserve_bytes

    @property
    def fits(self) -> bool:
        """Whether what is fetched and made fits on the disk that files are fetched to."""
        return self.needed_bytes <= self.free_bytes


def ask_servers(config: PipelineConfig, runtime: RuntimeConfig) -> Answers:
    """What is known of a run's files without fetching them; what does not answer stays unknown.

    Args:
        config: of the run.
        runtime: with little patience, see ``impatient``.

    Raises:
        SdrpnError: if a file does not exist.
    """
    by_source = planned_files(sources_of(config), runtime, allow_silence=True)
    folder = downloads_folder(runtime)
    return Answers(by_source, planned_model(config.model, runtime.downloads, folder))


def planned_run(
    config: PipelineConfig, runtime: RuntimeConfig, answers: Answers, made: Made
) -> RunPlan:
    """Stages, sizes, shards, GPU time and disk of what is left of a run.

    Args:
        config: of the run.
        runtime: where it keeps what it fetches and makes.
        answers: of the servers.
        made: what is in the store.
    """
    by_source = answers.by_source
    folder = downloads_folder(runtime)
    numbers = {
        source.name: num_questions(config, source, by_source[source.name], folder, made)
        for source in sources_of(config)
    }
    stages = planned_stages(config, by_source, numbers, made)
    files = unique_files(by_source)
    needs_model = _needs_model(stages)
    model = answers.model if needs_model else None
    problems = (_no_scenes(config, stages), _no_model(model))
    return RunPlan(
        files=files,
        model=model,
        stages=stages,
        fetch_bytes=sum(file.num_missing or 0 for file in files),
        convert_bytes=sum(file.num_rewritten for file in files),
        copied_bytes=_copied_bytes(by_source, stages),
        reserve_bytes=int(runtime.downloads.free_gib * _GIB),
        free_bytes=free_bytes(folder),
        downloads_folder=str(folder),
        are_sizes_guessed=needs_model and not model_dimensions(profile_of(config.model)).are_read,
        is_on_cpu=_is_on_cpu(runtime),
        problems=tuple(problem for problem in problems if problem),
    )


def _is_on_cpu(runtime: RuntimeConfig) -> bool:
    if runtime.device_map is not None:
        return False
    # A GPU that is named may be another machine's: the plan of a run can be made elsewhere.
    return runtime.device == "cpu" or (
        runtime.device == "auto" and resolve_device("auto").type == "cpu"
    )


def _needs_model(stages: Sequence[PlannedStage]) -> bool:
    """Whether anything is left that loads its weights."""
    return any(
        stage.gpu_hours != 0 or (stage.stage in _GO_ON_FROM_STEPS and not stage.is_done)
        for stage in stages
    )


def _copied_bytes(
    by_source: Mapping[str, tuple[PlannedFile, ...]], stages: Sequence[PlannedStage]
) -> int:
    """Of archives that go into the store, without those of downloads that are done."""
    done = {s.source for s in stages if s.stage is Stage.DOWNLOAD and s.is_done}
    left = {name: files for name, files in by_source.items() if name not in done}
    return sum(file.num_bytes or 0 for file in unique_files(left) if file.is_copied)


def impatient(runtime: RuntimeConfig) -> RuntimeConfig:
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


def _no_scenes(config: PipelineConfig, stages: Sequence[PlannedStage]) -> str | None:
    """Scenes that cannot be generated: a source's, or those that calibrate the model."""
    names = {source.name for source in sources_of(config) if isinstance(source, SceneSource)}
    of_scenes = (
        stage.stage is Stage.CALIBRATE or (stage.stage is Stage.DOWNLOAD and stage.source in names)
        for stage in stages
        if not stage.is_done
    )
    if not any(of_scenes):
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
