"""The stage ``calibrate``: what its artifact depends on, and what a run takes from it."""

from pathlib import Path

import pytest

from data_contracts.artifact import ArtifactRef
from data_contracts.calibration import BranchTraining, CalibrationSettings
from data_contracts.configs import ModelConfig, RecordsConfig
from data_contracts.enums import QuestionKind
from data_contracts.profiles import ModelProfile, UncalibratedProfile
from sdrpn_core.calibration.profile_file import profile_yaml
from tasks import recipes
from tasks.artifacts.stage import FileShard, run_stage
from tasks.artifacts.store import ArtifactStore
from tasks.calibrate import calibrated
from tasks.models import model_identity
from tests.artifacts import stage_run
from tests.tiny_models import tiny_llava

SETTINGS = CalibrationSettings(num_scenes=12)


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> ModelProfile:
    return tiny_llava(tmp_path_factory.mktemp("model"))


def ref_of(profile: ModelProfile, settings: CalibrationSettings = SETTINGS, **model: str) -> str:
    draft = profile.model_copy(update={"heads": {}})
    identity = model_identity(ModelConfig(profile=draft, **model))
    return str(recipes.calibration_recipe(draft, identity, settings).ref)


def test_other_models_settings_and_precisions_are_calibrated_anew(
    profile: ModelProfile, tmp_path: Path
) -> None:
    rpn = profile.rpn.model_copy(update={"branch_layer": 1})
    found = {
        ref_of(profile),
        ref_of(tiny_llava(tmp_path, seed=1)),
        ref_of(profile, SETTINGS.model_copy(update={"seed": 1})),
        ref_of(profile, dtype="bfloat16"),
        ref_of(profile.model_copy(update={"prompt": "{images} {question}"})),
        ref_of(profile.model_copy(update={"rpn": rpn})),
    }
    assert len(found) == 6


def test_a_note_in_the_profile_calibrates_nothing_anew(profile: ModelProfile) -> None:
    assert ref_of(profile.model_copy(update={"source": "another note"})) == ref_of(profile)


def artifact(store: ArtifactStore, profile: ModelProfile) -> ArtifactRef:
    """A calibration that found a profile."""
    recipe = recipes.calibration_recipe(profile, {}, SETTINGS)

    def make_shard(index: int) -> FileShard:
        return FileShard(recipes.CALIBRATION_FILES[index], profile_yaml(profile).encode())

    return run_stage(stage_run(store), recipe, make_shard)


def test_a_run_goes_on_with_what_was_found(profile: ModelProfile, file_store: ArtifactStore):
    model = ModelConfig(profile=profile, revision="a commit", dtype="bfloat16")
    heads = {kind: profile.heads[QuestionKind.TEXTUAL] for kind in QuestionKind}
    calibration = artifact(file_store, profile.model_copy(update={"heads": heads}))
    found = calibrated(file_store, model, calibration, QuestionKind)
    expected = profile.model_copy(update={"heads": heads})
    assert found == ModelConfig(profile=expected, revision="a commit", dtype="bfloat16")


def test_what_another_run_found_does_not_bring_its_regions_and_training(
    profile: ModelProfile, file_store: ArtifactStore
):
    """Neither is part of a calibration's address, so the artifact may be of other ones."""
    theirs = profile.with_changes(
        regions={"crop_tokens": 9}, training={"num_epochs": 9, "batch_size": 3}
    )
    calibration = artifact(file_store, theirs)
    found = calibrated(file_store, ModelConfig(profile=profile), calibration, QuestionKind)
    assert found == ModelConfig(profile=profile)


def test_questions_without_heads_stop_the_run_before_they_are_fetched(
    profile: ModelProfile, file_store: ArtifactStore
):
    natural = {QuestionKind.NATURAL: profile.heads[QuestionKind.NATURAL]}
    ref = artifact(file_store, profile.model_copy(update={"heads": natural}))
    with pytest.raises(UncalibratedProfile) as caught:
        calibrated(file_store, ModelConfig(), ref, RecordsConfig().kinds)
    assert "no heads for textual questions, see " in str(caught.value)
    assert "`records.datasets`" in str(caught.value)
    page = str(caught.value).split("see ")[1].split(": change")[0]
    assert Path(page).is_file()
    only_natural = RecordsConfig(datasets={})
    assert calibrated(file_store, ModelConfig(), ref, only_natural.kinds).profile


def test_branch_training_given_in_part_keeps_the_rest() -> None:
    """A learning rate alone took all other settings of a whole training: one epoch, not eight."""
    settings = CalibrationSettings.model_validate({"branch_training": {"learning_rate": 1e-4}})
    assert settings.branch_training == BranchTraining(learning_rate=1e-4)
    assert (settings.branch_training.num_epochs, settings.branch_training.batch_size) == (8, 16)
