"""Identity of artifacts: canonical JSON, recipe ids, references."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from data_contracts.artifact import ArtifactRef, Recipe, canonical_json
from data_contracts.configs import PipelineConfig
from data_contracts.enums import QuestionKind, Stage
from data_contracts.runtime import RuntimeConfig
from data_contracts.sources import SceneSource
from tests.artifacts import files_recipe, source_recipe

PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


def shuffled(value: object, rng: random.Random) -> object:
    """The same data with every dict in another order."""
    if isinstance(value, dict):
        items = [(key, shuffled(item, rng)) for key, item in value.items()]
        rng.shuffle(items)
        return dict(items)
    return [shuffled(item, rng) for item in value] if isinstance(value, list) else value


@given(PLAIN, st.integers())
def test_canonical_json_does_not_depend_on_dict_order(value: object, seed: int) -> None:
    assert canonical_json(shuffled(value, random.Random(seed))) == canonical_json(value)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"b": 1, "a": [True, None]}, '{"a":[true,null],"b":1}'),
        (0.1 + 0.2, "0.30000000000000004"),
        (1e-5, "1e-05"),
        (1.0, "1.0"),
        (Stage.TRAIN_RPN, '"train-rpn"'),
        ((1, 2), "[1,2]"),
        ("\u00e9", '"\u00e9"'),
    ],
)
def test_canonical_json_golden(value: object, text: str) -> None:
    assert canonical_json(value) == text


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, {"a": [math.nan]}])
def test_canonical_json_refuses_numbers_without_one_text(value: object) -> None:
    with pytest.raises(ValueError, match="identity"):
        canonical_json(value)


@pytest.mark.parametrize("value", [object(), {1, 2}, b"bytes", {1: "a"}, len, RuntimeConfig()])
def test_canonical_json_refuses_what_has_no_plain_form(value: object) -> None:
    with pytest.raises(TypeError, match="identity"):
        canonical_json(value)


def test_recipe_id_goldens() -> None:
    """A change here orphans every artifact that users have: bump stage versions instead."""
    assert str(source_recipe().ref) == "download/98cc29855a1bc1a048ff"
    assert (
        str(source_recipe(seed=1, rate=0.1, kind="natural").ref) == "download/4c6a2ec27a8f562a055a"
    )
    with_input = files_recipe().model_copy(update={"inputs": (str(source_recipe().ref),)})
    assert str(with_input.ref) == "report/62f677faf98931833b75"


def test_recipe_id_does_not_depend_on_dict_order() -> None:
    one = source_recipe(a={"x": 1, "y": [1, 2]}, b=2)
    other = source_recipe(b=2, a={"y": [1, 2], "x": 1})
    assert one.ref == other.ref


def test_recipe_id_survives_storage() -> None:
    recipe = source_recipe(rate=1e-5, count=3, kind=QuestionKind.NATURAL, nested={"t": (0.9, 0.98)})
    assert Recipe.model_validate_json(recipe.model_dump_json()).ref == recipe.ref


@pytest.mark.parametrize(
    "change",
    [
        {"stage": Stage.REPORT},
        {"stage_version": 2},
        {"schema_id": "files"},
        {"config": {"seed": 2}},
        {"inputs": ("download/" + "0" * 20,)},
        {"num_shards": 4},
    ],
)
def test_every_part_of_a_recipe_is_identity(change: dict[str, object]) -> None:
    recipe = source_recipe(seed=1)
    assert recipe.model_copy(update=change).ref.artifact_id != recipe.ref.artifact_id


def test_input_order_is_identity() -> None:
    inputs = ("download/" + "0" * 20, "download/" + "1" * 20)
    one = files_recipe().model_copy(update={"inputs": inputs})
    other = files_recipe().model_copy(update={"inputs": inputs[::-1]})
    assert one.ref != other.ref


def test_identity_and_runtime_settings_share_no_key() -> None:
    """Root, devices and workers must not be able to enter an artifact's id."""

    def keys(value: object) -> set[str]:
        if isinstance(value, dict):
            return set(value) | {key for item in value.values() for key in keys(item)}
        return {key for item in value for key in keys(item)} if isinstance(value, list) else set()

    source = SceneSource(name="s", num_images=1, seed=0)
    identity = keys(PipelineConfig(name="p", sources=(source,)).model_dump(mode="json"))
    runtime = set(RuntimeConfig.model_fields) - {"batch_size"}  # training's own one is identity
    assert not identity & runtime


def test_reference_reads_back() -> None:
    ref = source_recipe().ref
    assert ArtifactRef.parse(str(ref)) == ref
    assert ArtifactRef.parse(f"{ref}/") == ref


@pytest.mark.parametrize(
    "text",
    [
        "",
        "download",
        "download/",
        "download/xyz",
        "elsewhere/" + "0" * 20,
        "download/" + "0" * 21,
        "download/" + "A" * 20,
        "download/../" + "0" * 20,
    ],
)
def test_wrong_references_are_refused(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - pydantic's and enum's texts are theirs
        ArtifactRef.parse(text)


def test_documents_are_frozen_and_refuse_unknown_keys() -> None:
    recipe = source_recipe()
    with pytest.raises(ValidationError, match="frozen"):
        recipe.stage_version = 2
    with pytest.raises(ValidationError, match="extra"):
        Recipe(**recipe.model_dump(), colour="red")
