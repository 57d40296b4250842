"""Recipes and shards: what is identity, and which rows a shard holds."""

from typing import Any

import pytest

from data_contracts.artifact import ArtifactRef
from data_contracts.calibration import CalibrationSettings
from data_contracts.configs import ModelConfig, PipelineConfig
from data_contracts.enums import QuestionKind, Stage
from data_contracts.interop import PublishedLabels
from data_contracts.label_settings import RegionSettings
from data_contracts.sources import LlavaMixSource, SceneSource
from data_contracts.training import TrainingConfig
from sdrpn_core.models.profiles import load_profile
from tasks import recipes
from tasks.artifacts.row_ranges import overlapping, shard_range
from tasks.report import ReportInputs, shown_config


def test_scene_identity_is_its_settings_not_its_name():
    source = SceneSource(name="a", num_images=300, seed=3)
    recipe = recipes.scenes_recipe(source)
    assert recipes.scenes_recipe(source.model_copy(update={"name": "b"})) == recipe
    assert recipe.num_shards == 3
    for change in ({"seed": 4}, {"num_images": 301}, {"split": "test"}, {"print_scale": 2.0}):
        assert recipes.scenes_recipe(source.model_copy(update=change)).ref != recipe.ref


def test_a_renewed_signature_makes_no_other_report():
    """Reports showed whole addresses with the configuration."""
    ref = ArtifactRef(stage=Stage.TRAIN_RPN, artifact_id="0" * 20)
    inputs = ReportInputs((ref,), (ref,), (ref,), (ref,), label_set=ref, rpn=ref)

    def shown(signature: str) -> dict[str, Any]:
        records = f"https://host/mix.json?sig={signature}"
        source = LlavaMixSource(name="a", records=records, images=f"{records}.zip")
        config = PipelineConfig(name="x", sources=(source,), model=ModelConfig(profile="reference"))
        return shown_config(config, inputs)

    assert shown("s3cret") == shown("another")
    assert shown("s3cret")["sources"][0]["records"] == "https://host/mix.json?sig=..."


def test_how_a_profile_would_train_is_no_part_of_its_identity():
    """Only what a run trains with is: the profile's with the run's changes."""
    profile = load_profile("reference")
    other = profile.model_copy(update={"training": TrainingConfig(num_epochs=77)})
    label_set, regions = (
        ArtifactRef(stage=Stage.MERGE_LABELS, artifact_id="0" * 20),
        RegionSettings(),
    )
    trained, calibrated = (
        {make(one).ref for one in (profile, other)}
        for make in (
            lambda p: recipes.training_recipe(label_set, profile.training, regions, p, {}),
            lambda p: recipes.calibration_recipe(p, {}, CalibrationSettings()),
        )
    )
    assert (len(trained), len(calibrated)) == (1, 1)
    changed = recipes.training_recipe(label_set, other.training, regions, profile, {})
    assert changed.ref not in trained


def test_an_import_has_the_identity_that_it_always_had():
    """Moving the recipe must not make anybody import again."""
    settings = PublishedLabels(
        files=("far/a.pkl", "b.pkl"),
        images="images",
        datasets={"gqa": QuestionKind.NATURAL},
        default_kind=QuestionKind.TEXTUAL,
        rows_per_shard=3,
    )
    files = {"a.pkl": "0" * 64, "b.pkl": "1" * 64}
    attention = recipes.imported_attention_recipe(settings, files, "2" * 64, "/images", 7)
    assert attention.num_shards == 3
    assert attention.ref.artifact_id == "943660b7a6c28f9f2657"
    assert recipes.import_rejects_recipe(attention).ref.artifact_id == "10b15438e76999609335"


@pytest.mark.parametrize(
    ("num_rows", "num_shards"), [(0, 1), (1, 1), (7, 3), (8, 3), (9, 3), (2, 5), (1000, 7)]
)
def test_even_shards_hold_every_row_once(num_rows: int, num_shards: int):
    shares = [shard_range(num_rows, num_shards, index) for index in range(num_shards)]
    assert [row for share in shares for row in share] == list(range(num_rows))
    sizes = [len(share) for share in shares]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (range(2), [(0, range(2))]),
        (range(2, 6), [(0, range(2, 3)), (2, range(3))]),
        (range(9), [(0, range(3)), (2, range(4)), (3, range(2))]),
        (range(7, 9), [(3, range(2))]),
        (range(4, 4), []),
    ],
)
def test_rows_are_found_across_shards_of_uneven_size(wanted: range, found: list):
    assert overlapping([3, 0, 4, 2], wanted) == found
