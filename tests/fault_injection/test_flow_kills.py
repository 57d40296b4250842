"""``sdrpn run`` killed with SIGKILL in every stage: the next run goes on, and ends with the same.

One store lives through all kills, one after another, the way a bad night would have it. What must
come out equal to an undisturbed run in another store, and why the rest cannot, is said in
docs/operating.md under "When something stops".
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from data_contracts.artifact import ArtifactRef, Recipe, ShardEntry
from data_contracts.calibration import BranchTraining, CalibrationSettings
from data_contracts.configs import (
    EvaluationConfig,
    ExtractionConfig,
    ModelConfig,
    PipelineConfig,
    RecordsConfig,
)
from data_contracts.enums import Method, Stage
from data_contracts.results import Speed
from data_contracts.sources import SceneSource
from data_contracts.training import TrainingChanges
from sdrpn_core.evaluation.speed import Timings
from sdrpn_core.models.profiles import load_profile
from tasks.artifacts.admin import list_artifacts
from tasks.artifacts.keys import file_name
from tasks.artifacts.store import ArtifactStore
from tasks.evaluate import DOCUMENTS_NAME, SPEED_NAME
from tasks.report import REPORT_NAME
from tests.fault_injection.flow_process import FlowRun, Hold, execute

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

RECEIPT = r"/receipts/\d+\.json$"
MANIFEST = r"/manifest\.json$"
RESUME_POINT = r"/checkpoints/step-\d+/manifest\.json$"

# Receipt 2: one shard is finished, the bytes of the next are there but do not count yet.
# Manifest: every shard is finished, the artifact does not exist yet.
KILLS = [
    (Stage.CALIBRATE, Hold(RESUME_POINT, 2)),
    (Stage.CALIBRATE, Hold(RESUME_POINT, 2)),
    (Stage.CALIBRATE, Hold(RECEIPT, 2)),
    (Stage.CALIBRATE, Hold(MANIFEST)),
    (Stage.DOWNLOAD, Hold(RECEIPT, 2)),
    (Stage.DOWNLOAD, Hold(MANIFEST)),
    (Stage.BUILD_JSONL, Hold(RECEIPT, 2)),
    (Stage.BUILD_JSONL, Hold(MANIFEST)),
    (Stage.EXTRACT_ATTENTION, Hold(RECEIPT, 2)),
    (Stage.EXTRACT_ATTENTION, Hold(MANIFEST)),
    (Stage.MAKE_LABELS, Hold(RECEIPT, 2)),
    (Stage.MAKE_LABELS, Hold(MANIFEST)),
    (Stage.MERGE_LABELS, Hold(RECEIPT, 1)),
    (Stage.MERGE_LABELS, Hold(MANIFEST)),
    (Stage.TRAIN_RPN, Hold(RESUME_POINT, 3)),
    (Stage.TRAIN_RPN, Hold(RECEIPT, 2)),
    (Stage.TRAIN_RPN, Hold(MANIFEST)),
    (Stage.EVALUATE, Hold(RECEIPT, 2)),
    (Stage.EVALUATE, Hold(MANIFEST)),
    (Stage.EVALUATE, Hold(MANIFEST, 2)),
    (Stage.REPORT, Hold(RECEIPT, 1)),
    (Stage.REPORT, Hold(MANIFEST)),
]
NAMES = [
    f"{stage.value}-{hold.pattern.split('/')[1].strip('[]+')}-{hold.number}"
    for stage, hold in KILLS
]
MEASURED = {SPEED_NAME, DOCUMENTS_NAME, REPORT_NAME}
"""Files that show measured times."""


@dataclass(frozen=True)
class Attempt:
    """One run of the chain, and what the store held before it."""

    finished: frozenset[tuple[str, int]]
    """(artifact, shard) that had a receipt."""
    committed: frozenset[str]
    run: FlowRun


@dataclass(frozen=True)
class Night:
    """A store that was killed over and over, and one that nobody disturbed."""

    attempts: tuple[Attempt, ...]
    store: ArtifactStore
    undisturbed: ArtifactStore
    config: Path


def write_config(path: Path) -> None:
    """The reference model, but as if nobody had calibrated it."""
    profile = load_profile("reference").model_copy(update={"heads": {}})
    config = PipelineConfig(
        name="small",
        model=ModelConfig(profile=profile),
        calibration=CalibrationSettings(
            num_scenes=12,
            max_new_tokens=16,
            num_head_candidates=4,
            num_sink_candidates=2,
            num_branch_candidates=2,
            branch_training=BranchTraining(num_epochs=1, batch_size=8),
        ),
        sources=(SceneSource(name="scenes", num_images=6),),
        records=RecordsConfig(turns="all", rows_per_shard=3),
        extraction=ExtractionConfig(max_new_tokens=16, rows_per_shard=4),
        training=TrainingChanges(
            num_epochs=4, batch_size=4, checkpoint_every=1, validation_ratio=0.3
        ),
        evaluation=EvaluationConfig(
            source=SceneSource(name="held_out", split="test", num_images=2),
            methods=(Method.BASE, Method.RAW_ATTENTION, Method.SDRPN),
            max_new_tokens=8,
            num_bootstrap=20,
            rows_per_shard=1,
        ),
    )
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))


def command(config: Path, store: ArtifactStore) -> list[str]:
    runtime = config.with_name("runtime.yaml")
    return ["run", "-c", str(config), "--store", store.root, "--runtime", str(runtime)]


def artifacts(store: ArtifactStore) -> Iterator[Recipe]:
    """Recipes of all artifacts, committed or not."""
    for item in list_artifacts(store):
        recipe = store.read_document(item.ref, "recipe.json", Recipe)
        assert recipe is not None
        yield recipe


def attempt(config: Path, store: ArtifactStore, hold: Hold | None) -> Attempt:
    known = list(artifacts(store))
    finished = {
        (str(recipe.ref), entry.index)
        for recipe in known
        for entry in store.receipts(recipe)
        if entry is not None
    }
    committed = {str(recipe.ref) for recipe in known if store.is_committed(recipe.ref)}
    run = execute(command(config, store), hold)
    return Attempt(frozenset(finished), frozenset(committed), run)


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory) -> Night:
    folder = tmp_path_factory.mktemp("night")
    config = folder / "config.yaml"
    write_config(config)
    (folder / "runtime.yaml").write_text("{num_threads: 1, batch_size: 4, device: cpu}")
    undisturbed = ArtifactStore(str(folder / "undisturbed"))
    assert execute(command(config, undisturbed)).exit_code == 0
    store = ArtifactStore(str(folder / "killed"))
    holds = [Hold(f"^{stage.value}/[0-9a-f]+{hold.pattern}", hold.number) for stage, hold in KILLS]
    attempts = tuple(attempt(config, store, hold) for hold in (*holds, None))
    return Night(attempts, store, undisturbed, config)


@pytest.mark.parametrize(("stage", "number"), [(s, n) for n, (s, _) in enumerate(KILLS)], ids=NAMES)
def test_killed_stage_is_gone_on_with(night: Night, stage: Stage, number: int):
    """Killed where it was meant to be; the next run writes nothing that was finished."""
    killed, following = night.attempts[number : number + 2]
    assert killed.run.exit_code == -9
    assert killed.run.held_before is not None
    assert killed.run.held_before.startswith(f"{stage.value}/")
    ref = "/".join(killed.run.held_before.split("/")[:2])
    assert ref not in following.committed, "killed before the commit, yet committed"

    assert {key for key in following.run.written if prefix(key) in following.committed} == set()
    again = {shard for key in following.run.written if (shard := shard_of(key))}
    assert again & following.finished == set()
    assert killed.finished <= following.finished


def test_training_goes_on_from_the_last_whole_resume_point(night: Night):
    number = KILLS.index((Stage.TRAIN_RPN, Hold(RESUME_POINT, 3)))
    killed, following = night.attempts[number : number + 2]
    assert steps(killed.run) == [1, 2]
    assert steps(following.run)[0] == 3
    after_training = night.attempts[number + 2]
    assert steps(after_training.run) == [], "all steps were done; only files were missing"


def test_calibration_that_has_found_something_is_not_looked_for_again(night: Night):
    """All its files are made of one result, even where a GPU would find another the next time."""
    first, second, third, fourth = (steps(night.attempts[number].run) for number in range(4))
    assert first == [1], "one branch layer compared"
    assert second == [2], "the other one"
    assert third == [3], "the whole result"
    assert fourth == []


def test_last_run_completes(night: Night):
    last = night.attempts[-1].run
    assert (last.exit_code, last.held_before) == (0, None)
    assert {item.ref.stage for item in list_artifacts(night.store)} == set(Stage)
    assert all(item.is_committed for item in list_artifacts(night.store))


def test_everything_but_measured_times_has_the_digests_of_an_undisturbed_run(night: Night):
    assert entries(night.store) == entries(night.undisturbed)


def test_speed_is_that_of_the_runs_whose_predictions_stand(night: Night):
    (speeds,) = (shard for shard in files(night.store) if shard[1] == SPEED_NAME)
    ref, _ = speeds
    (predictions,) = night.store.manifest(ref).recipe.inputs
    shards = night.store.manifest(ArtifactRef.parse(predictions)).shards
    measured = Timings.from_series([shard.measurements for shard in shards]).summarize()
    assert Speed.model_validate_json(night.store.read_file(ref, SPEED_NAME)) == measured
    assert all(speed.seconds_per_document > 0 for speed in measured.methods.values())


def test_report_is_a_function_of_the_store(night: Night):
    """Two stores were measured at two times; one store gives one page."""
    (ref,) = (ref for ref, name in files(night.store) if name == REPORT_NAME)
    before = night.store.read_file(ref, REPORT_NAME)
    forced = ["stage", "report", "--force", *command(night.config, night.store)[1:]]
    assert execute(forced).exit_code == 0
    assert night.store.read_file(ref, REPORT_NAME) == before


def prefix(key: str) -> str:
    """``stage/id`` of a key."""
    return "/".join(key.split("/")[:2])


def shard_of(key: str) -> tuple[str, int] | None:
    """(artifact, shard) that a receipt or a shard of rows belongs to."""
    found = re.search(r"/(?:receipts|shards)/(\d+)", key)
    return (prefix(key), int(found[1])) if found else None


def steps(run: FlowRun) -> list[int]:
    """Steps whose resume point a run completed."""
    return [int(key.split("step-")[1][:8]) for key in run.written if re.search(RESUME_POINT, key)]


def entries(store: ArtifactStore) -> dict[str, list[ShardEntry]]:
    """Receipts of all artifacts, without what depends on measured times."""
    return {
        str(item.ref): [_without_times(shard) for shard in store.manifest(item.ref).shards]
        for item in list_artifacts(store)
    }


def _without_times(shard: ShardEntry) -> ShardEntry:
    name = file_name(shard.key)
    shows_times = {"key": name, "sha256": "", "num_bytes": 0} if name in MEASURED else {}
    return shard.model_copy(update={"measurements": {}, **shows_times})


def files(store: ArtifactStore) -> Iterator[tuple[ArtifactRef, str]]:
    for item in list_artifacts(store):
        for shard in store.manifest(item.ref).shards:
            yield item.ref, file_name(shard.key)
