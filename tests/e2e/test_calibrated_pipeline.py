"""``sdrpn run`` on models whose profile names no heads: calibration is a stage like every other."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import yaml
from PIL import Image

from data_contracts.artifact import ArtifactRef, Manifest
from data_contracts.configs import ExtractionConfig
from data_contracts.enums import Stage
from data_contracts.profiles import ModelProfile
from data_contracts.runtime import RuntimeConfig
from flows.dry_run import plan_run
from sdrpn_core.models.profiles import load_profile
from sdrpn_core.pipeline import ZoomPipeline
from tasks.recipes import CALIBRATION_FILES, CHECKPOINT_FILES
from tasks.rpn_files import stored_checkpoint
from tests.e2e.command_line import FirstRun, first_run, sdrpn
from tests.families.deepseek import tiny_deepseek_vl
from tests.families.mistral import tiny_mistral3
from tests.mixes import write_image
from tests.pipelines import write_uncalibrated_pipeline
from tests.tiny_qwen import tiny_qwen3_5_moe, tiny_qwen3_vl

pytestmark = [pytest.mark.timeout(1200), pytest.mark.usefixtures("no_server")]

MODELS = {
    "deepseek_vl": (tiny_deepseek_vl, {}),
    "mistral3": (tiny_mistral3, {}),
    "qwen3_5_moe": (tiny_qwen3_5_moe, {}),
    # The random Qwen answers these questions with nothing: let it read the data set's answers.
    "qwen3_vl": (
        tiny_qwen3_vl,
        {"extraction": ExtractionConfig(responses="dataset", rows_per_shard=3)},
    ),
}


class CalibratedRun(FirstRun):
    """A run that began with an uncalibrated profile."""

    def ref(self, stage: Stage, label: str = "all") -> ArtifactRef:
        return ArtifactRef.parse(self.summary["artifacts"][stage.value][label])

    def manifest(self, stage: Stage, label: str = "all") -> Manifest:
        return self.store.manifest(self.ref(stage, label))

    @property
    def profile(self) -> ModelProfile:
        uri = self.store.file_uri(self.ref(Stage.CALIBRATE), "profile.yaml")
        return load_profile(uri)


@pytest.fixture(scope="module", params=sorted(MODELS))
def first(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> CalibratedRun:
    folder = tmp_path_factory.mktemp(request.param)
    build, changes = MODELS[request.param]
    config = write_uncalibrated_pipeline(folder, build, **changes)
    run = first_run(folder, config)
    return CalibratedRun(run.folder, run.config, run.store, run.result)


def test_one_command_goes_from_an_uncalibrated_profile_to_the_report(first: CalibratedRun) -> None:
    assert first.result.exit_code == 0, first.result.output
    stages = list(first.summary["artifacts"])
    assert set(stages) == {stage.value for stage in Stage}
    assert stages[0] == "calibrate", "before hours of downloads"
    page = Path(first.summary["calibration"])
    assert f"calibration: {page}" in first.result.stdout
    assert "<svg" in page.read_text(encoding="utf-8")
    report = Path(first.summary["report"]).read_text(encoding="utf-8")
    assert first.ref(Stage.CALIBRATE).artifact_id in report
    assert f"{first.profile.source} (calibrate/" in report


def test_a_plan_after_it_has_nothing_left(first: CalibratedRun) -> None:
    plan = sdrpn("run", "--dry-run", *first.options)
    assert plan.exit_code == 0, plan.output
    assert "to do" not in plan.stdout
    assert "everything is made" in plan.stdout


def test_a_plan_without_the_calibration_has_all_that_depends_on_it(
    first: CalibratedRun, tmp_path: Path
) -> None:
    store = shutil.copytree(first.store.root, tmp_path / "store")
    shutil.rmtree(store / Stage.CALIBRATE.value)
    plan = plan_run(first.config, RuntimeConfig(store=str(store), device="cpu"))
    done = {stage.stage for stage in plan.stages if stage.is_done}
    assert done == {Stage.DOWNLOAD, Stage.BUILD_JSONL}


def test_calibration_is_an_artifact_with_provenance(first: CalibratedRun) -> None:
    manifest = first.manifest(Stage.CALIBRATE)
    assert tuple(first.store.file_names(first.ref(Stage.CALIBRATE))) == CALIBRATION_FILES
    assert manifest.recipe.config["settings"]["num_scenes"] == 16
    assert manifest.recipe.config["model"]["dtype"] == "float32"
    assert manifest.provenance.packages
    listed = sdrpn("artifacts", "ls", "--stage", "calibrate", *first.options[2:])
    assert str(first.ref(Stage.CALIBRATE)) in listed.stdout
    shown = sdrpn("artifacts", "show", first.ref(Stage.CALIBRATE), *first.options[2:])
    assert json.loads(shown.stdout)["is_committed"] is True


def test_later_stages_use_the_calibrated_profile(first: CalibratedRun) -> None:
    assert not load_profile(str(first.config.model.profile)).is_calibrated
    plain = first.profile.model_dump(mode="json")
    attention = first.manifest(Stage.EXTRACT_ATTENTION, "small").recipe
    training = first.manifest(Stage.TRAIN_RPN).recipe
    predictions = first.manifest(Stage.EVALUATE, "held_out").recipe
    for recipe in (attention, training, predictions):
        assert recipe.config["model"]["heads"] == plain["heads"]
    # How the RPN is trained, and asked, stands in the recipe by itself.
    recipe_of_its_own = plain.pop("training")
    plain.pop("regions")
    assert training.config["regions"] == first.profile.regions.identity()
    assert set(training.config["training"]) == set(recipe_of_its_own) - {"checkpoint_every"}
    assert training.config["profile"] == plain
    # The configuration's own label settings win.
    labels = first.manifest(Stage.MAKE_LABELS, "small").recipe
    assert first.config.labels is not None
    assert labels.config == first.config.labels.model_dump(mode="json")


def test_labels_are_made_with_the_settings_that_calibration_found(
    first: CalibratedRun, tmp_path: Path
) -> None:
    data = first.config.model_dump(mode="json") | {"labels": None}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(data))
    options = ("-c", tmp_path / "config.yaml", "--store", first.store.root)
    made = sdrpn("stage", "make-labels", *options, "--json", tmp_path / "out.json")
    assert made.exit_code == 0, made.output
    artifacts = json.loads((tmp_path / "out.json").read_text())["artifacts"]
    assert artifacts["calibrate"]["all"] == str(first.ref(Stage.CALIBRATE))
    recipe = first.store.manifest(ArtifactRef.parse(artifacts["make-labels"]["small"])).recipe
    assert recipe.config == first.profile.labels.model_dump(mode="json")


def test_rpn_answers_without_the_calibration_and_the_configuration(
    first: CalibratedRun, tmp_path: Path
) -> None:
    rpn = first.ref(Stage.TRAIN_RPN)
    checkpoint = stored_checkpoint(first.store, rpn)
    assert checkpoint.config.profile == first.profile
    for name in CHECKPOINT_FILES:
        (tmp_path / name).write_bytes(first.store.read_file(rpn, name))
    write_image(tmp_path / "picture.png", 7)
    answered = sdrpn("predict", tmp_path / "picture.png", "what is it ?", "--rpn", tmp_path)
    assert answered.exit_code == 0, answered.output
    zoom = ZoomPipeline.from_pretrained(first.profile.model_id, str(tmp_path), device="cpu")
    (answer,) = zoom.answer([Image.open(tmp_path / "picture.png")], ["what is it ?"])
    assert answer.text is not None


def test_second_run_calibrates_nothing(first: CalibratedRun, tmp_path: Path) -> None:
    again = sdrpn("run", *first.options, "--json", tmp_path / "again.json")
    assert again.exit_code == 0, again.output
    assert "reused, nothing computed" in again.stdout
    summary = json.loads((tmp_path / "again.json").read_text())
    assert summary["artifacts"] == first.summary["artifacts"]


def test_forced_calibration_comes_out_the_same(first: CalibratedRun) -> None:
    before = first.manifest(Stage.CALIBRATE)
    forced = sdrpn("stage", "calibrate", *first.options, "--force")
    assert forced.exit_code == 0, forced.output
    after = first.manifest(Stage.CALIBRATE)
    assert after.provenance.created_at > before.provenance.created_at
    assert after.shards == before.shards


@pytest.mark.parametrize("first", ["deepseek_vl"], indirect=True)
def test_command_and_stage_find_the_same(first: CalibratedRun, tmp_path: Path) -> None:
    settings = first.config.calibration.model_dump_json()
    (tmp_path / "settings.yaml").write_text(settings)
    found = first.profile
    own = sdrpn(
        *("calibrate", "--model", found.model_id, "--prompt", found.prompt),
        *("--settings", tmp_path / "settings.yaml", "--out", tmp_path / "out"),
        *("--batch-size", 32, "--device", "cpu"),
    )
    assert own.exit_code == 0, own.output
    profile = load_profile(str(tmp_path / "out/profile.yaml"))
    same = {"heads", "labels", "images", "source"}
    assert profile.model_dump(include=same) == found.model_dump(include=same)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(CALIBRATION_FILES)


def test_without_scenes_it_ends_before_anything_is_fetched(
    first: CalibratedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "skimage", None)
    store = tmp_path / "store"
    result = sdrpn("run", *first.options[:2], "--store", store)
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert line == "error: scenes need scikit-image: pip install 'sdrpn[scenes]'"
    assert not (store / "download").exists()
    planned = sdrpn("run", *first.options[:2], "--store", store, "--dry-run")
    assert "first: scenes need scikit-image" in planned.stdout
    # What is committed needs no scenes any more.
    assert sdrpn("run", *first.options).exit_code == 0


def test_a_calibrated_model_has_no_such_stage(tmp_path: Path) -> None:
    result = sdrpn("stage", "calibrate", "-c", "reference", "--store", tmp_path / "store")
    assert result.exit_code == 2
    assert "profile 'reference' is calibrated: there is nothing to do" in result.stderr
