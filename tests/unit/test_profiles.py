"""Packaged profiles: the published values, and what an uncalibrated profile refuses."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from data_contracts.configs import ExtractionConfig, ModelConfig
from data_contracts.enums import QuestionKind
from data_contracts.label_settings import RegionSettings
from data_contracts.profiles import (
    DynamicGrid,
    ImageSettings,
    ModelProfile,
    SinkHeads,
    SquareGrid,
    UncalibratedProfile,
)
from sdrpn_core.calibration.profile_file import profile_yaml
from sdrpn_core.evaluation.vicrop import most_grounding_layer
from sdrpn_core.models.families import FAMILIES
from sdrpn_core.models.profiles import load_profile, named_model, packaged_profiles
from tasks.extract_attention import attention_recipe

NAMES = packaged_profiles()
UNCALIBRATED = [
    "aya-vision-8b",
    "cosmos3-nano",
    "deepseek-vl-1.3b",
    "deepseek-vl-7b",
    "gemma-3-12b",
    "gemma-3-4b",
    "gemma-4-26b-a4b",
    "gemma-4-31b",
    "glm-4.1v-9b",
    "glm-4.5v",
    "glm-4.6v-flash",
    "granite-vision-3.3-2b",
    "internvl3-8b",
    "internvl3.5-8b",
    "janus-pro-7b",
    "lfm2.5-vl-1.6b",
    "llava-onevision-0.5b",
    "llava-onevision-7b",
    "llava-v1.6-mistral-7b",
    "llava-v1.6-vicuna-7b",
    "minicpm-v-4.6",
    "minicpm-v-4.7-1b",
    "ministral-3-8b",
    "mistral-small-3.1-24b",
    "north-micro-vision",
    "qianfan-ocr",
    "qwen2-vl-7b",
    "qwen3-vl-30b-a3b",
    "qwen3.5-35b-a3b",
    "smolvlm2-2.2b",
    "smolvlm2-500m",
]
NATURAL, TEXTUAL = QuestionKind.NATURAL, QuestionKind.TEXTUAL
SUFFIX = "Answer the question using a single word or phrase."

PUBLISHED = {
    "qwen2.5-vl-3b": (
        (36, 16, 21),
        {21: (9, 11), 22: (0, 7)},
        {8: (1, 13)},
        {20: (1, 4), 22: (14,)},
    ),
    "qwen2.5-vl-7b": (
        (28, 28, 16),
        {16: (1, 7, 17), 19: (17, 20)},
        {9: (4, 22)},
        {22: (1, 4), 23: (6, 11)},
    ),
}


LATER = {
    "qwen3-vl-4b": (
        (24, {20: (15, 21, 23), 21: (8, 10, 11)}, {20: (1, 24)}),
        ({19: (24, 27), 24: (21, 23)}, {24: (6, 10)}),
    ),
    "qwen3-vl-8b": (
        (24, {20: (15, 21, 23), 21: (8, 10, 11)}, {21: (7,)}),
        ({19: (24, 26, 27), 24: (21, 22, 23)}, {24: (1, 2)}),
    ),
    "qwen3.5-4b": ((21, {19: (14, 15)}, None), ({19: (14, 15)}, None)),
    "qwen3.5-9b": ((21, {19: (14, 15)}, None), ({19: (14, 15)}, None)),
    "gemma-4-12b": ((27, {29: (0, 1)}, None), ({17: (0, 15), 29: (3, 15)}, None)),
}
"""B, natural heads and sinks, textual heads and sinks: of Q-Zoom and Vision-RL2."""
ASKED_OTHERWISE = {
    "glm-4.1v-9b",
    "granite-vision-3.3-2b",
    "llava-1.5-7b",
    "llava-1.5-13b",
    "llava-v1.6-vicuna-7b",
}
"""Than models of their families whose prompt nobody gives."""


@pytest.mark.parametrize("name", sorted(LATER))
def test_later_profiles_hold_the_published_values(name: str) -> None:
    profile = load_profile(name)
    (branch, *natural), textual = LATER[name]
    assert (profile.rpn.branch_layer, profile.rpn.depth) == (branch, 3)
    for kind, (grounding, sinks) in ((NATURAL, natural), (TEXTUAL, textual)):
        selection = profile.heads_for(kind)
        assert selection.grounding == grounding
        assert selection.sink == (None if sinks is None else SinkHeads(heads=sinks))
    labels = profile.labels
    assert (labels.foreground_ratio_threshold, labels.background_ratio_threshold) == (0.25, 0.05)
    assert labels.border_cells == (1 if name.startswith("gemma") else 0)
    assert "grounding bounding box" in profile.extraction_instructions[NATURAL].instruction


@pytest.mark.parametrize("name", NAMES)
def test_every_packaged_profile_is_whole(name: str) -> None:
    profile = load_profile(name)
    assert profile.name == name
    defaults = FAMILIES[profile.family].defaults
    assert (profile.prompt == defaults.prompt) == (name not in ASKED_OTHERWISE)
    assert profile.images == defaults.images or name.startswith("llava-1.5-")
    assert profile.is_calibrated == (name not in UNCALIBRATED)
    assert profile.is_calibrated != profile.source.startswith("uncalibrated")


@pytest.mark.parametrize("name", NAMES)
def test_a_written_profile_is_read_back_equal(name: str, tmp_path: Path) -> None:
    """A null that overrides a default was left out, and the default came back."""
    profile = load_profile(name)
    file = tmp_path / "profile.yaml"
    file.write_text(profile_yaml(profile))
    assert load_profile(str(file)) == profile


def test_a_profile_file_of_before_keeps_the_zoom_into_small_pictures() -> None:
    """Configurations said so; profiles that name no regions must not bring the rule in."""
    plain = load_profile("qwen2.5-vl-7b").model_dump(mode="json", exclude={"regions"})
    assert ModelProfile.model_validate(plain).regions.max_seen_ratio is None
    cheap = ModelProfile.model_validate(plain | {"regions": {"crop_tokens": 9}})
    assert (cheap.regions.crop_tokens, cheap.regions.max_seen_ratio) == (9, None)


def test_regions_of_a_profile_are_over_the_default_preset() -> None:
    """As those of a run are over the profile's: a profile that names one key keeps the gate."""
    plain = load_profile("llava-1.5-7b").model_dump(mode="json", exclude={"regions"})
    default = RegionSettings.preset("default")
    for given, expected in (
        ({"regions": {"crop_tokens": 9}}, default.with_changes(crop_tokens=9)),
        ({"regions": None}, default),
        ({}, default),
    ):
        assert ModelProfile.model_validate(plain | given).regions == expected


def test_regions_are_not_part_of_what_a_model_is() -> None:
    """They stand beside the profile in an RPN's recipe: labels need not be made for them anew."""
    profile = load_profile("llava-1.5-7b")
    cheap = profile.with_changes(regions={"crop_tokens": 9})
    assert cheap.regions.crop_tokens == 9
    assert cheap.identity() == profile.identity()


ENLARGING = ("cosmos", "gemma-4", "glm", "lfm", "minicpm", "ministral", "mistral", "north", "qwen")


def test_only_models_that_enlarge_small_pictures_zoom_into_those_they_saw_every_pixel_of() -> None:
    limits = {name: load_profile(name).regions.max_seen_ratio for name in packaged_profiles()}
    assert {name for name, limit in limits.items() if limit is None} == {
        name for name in limits if name.startswith(ENLARGING)
    }


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_qwen_profiles_hold_the_published_values(name: str) -> None:
    profile = load_profile(name)
    sizes, natural, sink, textual = PUBLISHED[name]
    assert (profile.num_layers, profile.num_heads, profile.rpn.branch_layer) == sizes
    assert profile.heads_for(NATURAL).grounding == natural
    assert profile.heads_for(NATURAL).sink == SinkHeads(heads=sink)
    assert profile.heads_for(TEXTUAL).grounding == textual
    assert profile.heads_for(TEXTUAL).sink is None
    assert (profile.rpn.depth, profile.rpn.final_norm, profile.rpn.rotary_scores) == (
        3,
        False,
        True,
    )
    assert profile.labels.sink_threshold == 1e-2
    assert profile.images.fill == (127, 127, 127)
    assert profile.images.labels == SquareGrid(side=24)
    assert profile.images.answers == DynamicGrid(min_cells=576, max_cells=576)
    assert profile.prompt.index("{question}") < profile.prompt.index("{images}")


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_only_natural_questions_get_the_extraction_instruction(name: str) -> None:
    profile = load_profile(name)
    question = f"Where is the dog?\n{SUFFIX}"
    assert profile.extraction_question(question, TEXTUAL) == question
    asked = profile.extraction_question(question, NATURAL)
    assert asked.startswith("Where is the dog?\nOutput the grounding bounding box")
    assert asked.endswith("x_min y_min x_max y_max {detail_label}.")
    assert SUFFIX not in asked


def test_question_without_the_suffix_gets_the_instruction_after_it() -> None:
    """Reference defect 11: an exact-string replace that silently did nothing."""
    asked = load_profile("qwen2.5-vl-7b").extraction_question("Where is the dog?", NATURAL)
    assert asked.startswith("Where is the dog?\nOutput the grounding")


@pytest.mark.parametrize("name", UNCALIBRATED)
def test_uncalibrated_profile_refuses_with_the_remedy(name: str) -> None:
    profile = load_profile(name)
    remedy = f"'{name}' is uncalibrated.*sdrpn calibrate --model {profile.model_id}"
    with pytest.raises(UncalibratedProfile, match=remedy):
        profile.heads_for(NATURAL)
    with pytest.raises(UncalibratedProfile, match=remedy):
        most_grounding_layer(profile, TEXTUAL)


def test_extraction_refuses_before_it_reads_or_loads_anything() -> None:
    with pytest.raises(UncalibratedProfile, match="sdrpn calibrate --model Qwen/Qwen2-VL-7B"):
        attention_recipe(None, None, ModelConfig(profile="qwen2-vl-7b"), ExtractionConfig())


def test_missing_kind_names_the_kind() -> None:
    profile = load_profile("qwen2.5-vl-3b")
    natural_only = profile.model_copy(update={"heads": {NATURAL: profile.heads[NATURAL]}})
    with pytest.raises(UncalibratedProfile, match="no heads for textual questions: run"):
        natural_only.heads_for(TEXTUAL)


@pytest.mark.parametrize("level", [-1, 256])
def test_a_fill_that_is_no_colour_is_refused(level: int) -> None:
    """Pillow painted another one."""
    with pytest.raises(ValidationError, match=r"Input should be (less|greater) than or equal"):
        ImageSettings(fill=(0, level, 0))


def test_bounds_of_a_dynamic_grid_are_ordered() -> None:
    with pytest.raises(ValidationError, match="min_cells must not exceed max_cells"):
        DynamicGrid(min_cells=9, max_cells=4)


def test_heads_outside_the_model_are_refused() -> None:
    plain = load_profile("qwen2.5-vl-3b").model_dump(mode="json")
    with pytest.raises(ValidationError, match="outside the model's 36 layers x 16 heads"):
        ModelProfile.model_validate(plain | {"heads": {"natural": {"grounding": {"22": [16]}}}})


def test_the_name_of_a_packaged_profile_names_its_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``predict --model llava-1.5-7b`` asked the hub for a repository of that name."""
    monkeypatch.chdir(tmp_path)
    assert named_model("llava-1.5-7b") == "llava-hf/llava-1.5-7b-hf"
    assert named_model("reference") == "reference"
    assert named_model("my/llava-1.5-7b") == "my/llava-1.5-7b"
    (tmp_path / "llava-1.5-7b").mkdir()
    assert named_model("llava-1.5-7b") == "llava-1.5-7b"
