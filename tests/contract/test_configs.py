"""Configurations: what is wrong is named with its key, and what is identity is pinned."""

import re
from pathlib import Path
from typing import get_args

import pytest
import yaml

from data_contracts.base import Settings
from data_contracts.configs import EvaluationConfig, PipelineConfig, RuleName
from data_contracts.enums import BenchmarkTask
from data_contracts.label_settings import LabelSettings, RegionSettings
from data_contracts.settings_files import ConfigError
from data_contracts.sources import (
    BenchmarkSource,
    ImageArchive,
    ImageFolder,
    LlavaMixSource,
    SceneSource,
    Selection,
    VisualCotSource,
)
from data_contracts.training import TrainingConfig
from data_contracts.wrong_settings import WrongSetting
from flows.cli_base import pipeline_config
from flows.config_files import load_config
from sdrpn_core.benchmarks.scoring import known_benchmarks
from sdrpn_core.models.profiles import load_profile, packaged_profiles
from sdrpn_core.records import skipped
from tasks.models import profile_of
from tasks.sources.benchmark_files import settings_for
from tests.architecture.source_tree import CHECKOUT
from tests.config_samples import MINIMAL, write

MIX = {"type": "llava_mix", "name": "s", "records": "x"}


def test_minimal_config_takes_every_default(tmp_path: Path):
    config = PipelineConfig.load(write(tmp_path, MINIMAL))
    assert config.training is None
    assert config.evaluation is None
    assert config.sources == (SceneSource(name="s", num_images=4),)


def test_the_configuration_that_the_readme_writes_is_one(tmp_path: Path):
    """Its source gave no type, and was refused in pydantic's words."""
    readme = (CHECKOUT / "README.md").read_text()
    (text,) = re.findall(r"^```yaml\n(# my-run.yaml\n.*?)^```", readme, re.M | re.S)
    config = PipelineConfig.load(write(tmp_path, text))
    assert isinstance(config.sources[0], LlavaMixSource)
    with pytest.raises(ConfigError) as caught:
        PipelineConfig.load(write(tmp_path, text.replace("records:", "record:")))
    assert "sources.0.llava_mix.records' is missing" in str(caught.value)
    assert "at least 1" not in str(caught.value)


HELD_OUT = {"type": "scenes", "name": "held_out", "num_images": 4}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sources": None}, r"config.yaml: key 'sources'"),
        ({"name": None}, r"key 'name'"),
        ({"sorces": []}, r"key 'sorces' is not known: remove it or mend its spelling"),
        ({"training": {"lr": 1.0}}, r"key 'training.lr' is not known"),
        ({"training": {"learning_rate": -1.0}}, r"key 'training.learning_rate': .*greater than 0"),
        ({"sources": []}, r"key 'sources': .*at least 1"),
        ({"sources": [{"type": "zip", "name": "s"}]}, r"key 'sources.0': .*'zip'"),
        (
            {"sources": [{"type": "llava_mix", "name": "s"}]},
            r"llava_mix.records' is missing",
        ),
        ({"sources": MINIMAL["sources"] * 2}, r"source names must differ, got \['s', 's'\]"),
        ({"evaluation": {"source": MINIMAL["sources"][0]}}, r"source names must differ"),
        ({"labels": {"background_ratio_threshold": 1.9}}, r"'labels.background_ratio_threshold'"),
        ({"model": {"profile": 7}}, r"key 'model.profile.name': .*valid string"),
        ({"model": {"profile": {"name": "x"}}}, r"'model.profile.written_out.heads' is missing"),
        ({"calibration": {"num_scene": 9}}, r"key 'calibration.num_scene' is not known"),
        # One resample printed an interval.
        ({"evaluation": {"source": HELD_OUT, "num_bootstrap": 19}}, r"num_bootstrap': .* to 20"),
        # They were told of Python's dictionaries and tuples.
        ({"records": 5}, r"key 'records': a section with keys of its own is needed, not 5"),
        ({"training": {"loss": "bce"}}, r"'training.loss': a section .* is needed, not 'bce'"),
        ({"training": {"betas": 3}}, r"key 'training.betas': a list is needed, not 3"),
        ({"training": {"betas": [0.9, 1.0]}}, r"'training.betas.1': Input should be less than 1"),
        ({"training": {"max_grad_norm": float("inf")}}, r"max_grad_norm': .* a finite number"),
        ({"labels": {"sink_threshold": float("nan")}}, r"sink_threshold': .* a finite number"),
    ],
)
def test_error_names_file_key_and_remedy(tmp_path: Path, change: dict, message: str):
    data = {name: value for name, value in (MINIMAL | change).items() if value is not None}
    with pytest.raises(ConfigError, match=message) as caught:
        PipelineConfig.load(write(tmp_path, data))
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": {"foreground_threshold": 0.3}}, r"; valid are foreground_ratio_threshold, .*"),
        ({"regions": {"max_region": 3}}, r"'regions.max_region' .*; valid are blur_sigma, thresh"),
        ({"max_records": 3}, r"'max_records' is not known: put it under records; valid here are n"),
        ({"seed": 3}, r"'seed' .*: put it under calibration or training or evaluation; valid"),
        (
            {"labels": {"max_regions": 2}},
            r"labels.max_regions' .*: put it under regions; valid here ",
        ),
        (
            {"model": {"num_epochs": 2}},
            r"'model.num_epochs' .*: put it under training; valid here ",
        ),
        ({"source": []}, r"'source' is not known: remove it or mend its spelling; valid are n"),
        ({"evaluation": {"source": HELD_OUT, "name": "x"}}, r"'evaluation.name' .*; valid are sou"),
        (
            {"sources": [MIX | {"images": "x", "part": "train"}]},
            r"'sources.0.llava_mix.part' .*: put it under selection; valid here are ty",
        ),
        (
            {"device": "cpu"},
            r"'device' is not known: it is a key of the runtime file \(--runtime\)$",
        ),
        ({"batch_size": 3}, r"by batch_size of the runtime file, .* by training.batch_size$"),
        ({"regions": {"threshold": 0.5}}, r"; evaluation.region_threshold evaluates another"),
        ({"model": {"profil": "x"}}, r"'model.profil' .*; valid are profile, revision, dtype$"),
        (
            {"sources": [{"type": "scenes", "name": "s", "num_image": 4}]},
            r"key 'sources.0.scenes.num_images' is missing: add it; .*'sources.0.scenes.num_image' "
            r"is not known: .*; valid are type, name, num_images, seed, split, print_scale$",
        ),
        (
            {"sources": [MIX | {"images": [{"type": "folder", "uri": "x", "folders": "y"}]}]},
            r"'sources.0.llava_mix.images.0.folder.folders' .*; valid are type, uri, folder$",
        ),
        (
            {"sources": [MIX | {"records": {"uri": "x", "size": 1}, "images": "x"}]},
            r"'sources.0.llava_mix.records.size' .*; valid are uri, mirrors, sha256, num_byt",
        ),
    ],
)
def test_unknown_key_lists_the_valid_keys_of_its_section(
    tmp_path: Path, change: dict, message: str
):
    with pytest.raises(ConfigError, match=message):
        PipelineConfig.load(write(tmp_path, MINIMAL | change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_size": [640, 10]}, r"image_size.1': .*equal to 64"),
        ({"sink_levels": [1.0, 0.0]}, r"sink_levels.1': .*greater than 0"),
        ({"sink_norms": [-1.0]}, r"sink_norms.0': .*greater than 0"),
        ({"sink_values": [0.0]}, r"sink_values.0': .*greater than 0"),
        ({"foreground_thresholds": [0.2, 0.0]}, r"foreground_thresholds.1': .*greater than 0"),
        ({"background_thresholds": [1.5]}, r"background_thresholds.0': .*equal to 1"),
    ],
)
def test_what_calibration_cannot_try_is_found_when_the_config_is_read(
    tmp_path: Path, change: dict, message: str
):
    """A traceback, after all scenes were answered."""
    with pytest.raises(ConfigError, match=rf"key 'calibration\.{message}"):
        PipelineConfig.load(write(tmp_path, MINIMAL | {"calibration": change}))


@pytest.mark.parametrize("name", [".", "..", "..."])
def test_a_name_of_dots_alone_is_refused(tmp_path: Path, name: str):
    """All stages were made before its labels could not be promoted: below which folder?"""
    with pytest.raises(ConfigError, match="key 'name': String should match pattern"):
        PipelineConfig.load(write(tmp_path, MINIMAL | {"name": name}))
    assert PipelineConfig.load(write(tmp_path, MINIMAL | {"name": f"{name}x"})).name == f"{name}x"
    assert pipeline_config(data=f"{name}.json", images="images").name == "data"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"benchmark": "textvqua"}, r"key 'evaluation.benchmark': .*'scenes', 'textvqa'"),
        ({"methods": ["base", "sd_rpm"]}, r"key 'evaluation.methods.1': .*'sdrpn'"),
        (
            {"benchmarks": [{"type": "benchmark", "task": "textvqa"}]},
            r"key 'evaluation.benchmarks.0.task': .*'textvqa_val'",
        ),
        ({"seed": -1}, r"key 'evaluation.seed': .*greater than or equal to 0"),
        ({"methods": []}, r"key 'evaluation.methods': .*at least 1 item"),
        (
            {"methods": ["base", "sdrpn", "base"]},
            r"key 'evaluation.methods': each method once; base is there more than once$",
        ),
    ],
)
def test_what_an_evaluation_cannot_take_is_found_when_the_config_is_read(
    tmp_path: Path, change: dict, message: str
):
    """A scoring rule that does not exist was found when the first answer was scored, a method that
    was there twice after the first shard, a negative seed after all answers were made."""
    data = MINIMAL | {"evaluation": {"source": HELD_OUT, **change}}
    with pytest.raises(ConfigError, match=message):
        PipelineConfig.load(write(tmp_path, data))


@pytest.mark.parametrize("source", [HELD_OUT, MIX | {"name": "own", "images": "y"}])
@pytest.mark.parametrize("rule", get_args(RuleName))
def test_a_rule_that_ones_own_questions_cannot_feed_is_found_when_the_config_is_read(
    tmp_path: Path, rule: str, source: dict
):
    """They failed after training, for want of a column; textvqa gave every right answer 0, as it
    leaves out each annotator in turn and there was but one."""
    data = MINIMAL | {"evaluation": {"source": source, "benchmark": rule}}
    if rule in {"scenes", "docvqa", "infovqa", "chartqa", "ocrbench"}:
        assert PipelineConfig.load(write(tmp_path, data)).evaluation.benchmark == rule
        return
    message = (
        rf"key 'evaluation.benchmark': {rule} judges by .*, which source '{source['name']}' does "
        "not give; choose one of scenes, docvqa, infovqa, chartqa, ocrbench, or add the public"
    )
    with pytest.raises(ConfigError, match=message):
        PipelineConfig.load(write(tmp_path, data))


def test_a_public_benchmarks_own_rule_is_one_however_its_settings_travel():
    task = BenchmarkSource(task=BenchmarkTask.POPE)
    own = settings_for(EvaluationConfig(source=SceneSource(**HELD_OUT)), task)
    assert EvaluationConfig.model_validate(own.model_dump(mode="json")) == own


def parted(name: str, part: str, ratio: float, seed: int = 0) -> dict:
    selection = {"part": part, "held_out_ratio": ratio, "seed": seed}
    return {"type": "llava_mix", "name": name, "records": "x", "images": "y"} | {
        "selection": selection
    }


@pytest.mark.parametrize(
    ("trained", "evaluated", "values"),
    [
        ((0.05, 0), (0.3, 0), r"holds out 0.3 .* by seed 0, .* leaves out 0.05 by seed 0"),
        ((0.05, 0), (0.05, 1), r"holds out 0.05 .* by seed 1, .* leaves out 0.05 by seed 0"),
    ],
)
def test_parts_of_different_draws_are_refused(
    tmp_path: Path, trained: tuple, evaluated: tuple, values: str
):
    """An RPN was trained on images that it was evaluated on, and nothing said so."""
    sources = [MINIMAL["sources"][0], parted("whole", "all", 0.5, 7)]
    data = MINIMAL | {
        "sources": [*sources, parted("mix", "train", *trained)],
        "evaluation": {"source": parted("test", "held_out", *evaluated)},
    }
    message = rf"evaluation.source 'test' {values}, .*; give both .* or 'mix' `part: all` if"
    with pytest.raises(ConfigError, match=message) as caught:
        PipelineConfig.load(write(tmp_path, data))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("trained", "evaluated"),
    [
        (("train", 0.3, 1), ("held_out", 0.3, 1)),
        (("train", 0.3, 1), ("held_out", 0.1, 1)),
        (("all", 0.05, 0), ("held_out", 0.3, 1)),
        (("train", 0.05, 0), ("all", 0.3, 1)),
    ],
)
def test_parts_that_share_no_image_are_accepted(trained: tuple, evaluated: tuple):
    """A smaller share of the same draw is held out by a larger one too; ``all`` is no part."""
    evaluation = {"source": parted("test", *evaluated)}
    data = {"name": "x", "sources": [parted("mix", *trained)], "evaluation": evaluation}
    PipelineConfig.model_validate(data)
    records = [{"image": f"{number}.png"} for number in range(300)]
    selections = [Selection(part=p, held_out_ratio=r, seed=s) for p, r, s in (trained, evaluated)]
    parts = [{r["image"] for r in records if not skipped(r, one, {})} for one in selections]
    assert parts[0].isdisjoint(parts[1]) is ("all" not in (trained[0], evaluated[0]))


def test_parts_of_other_folders_share_no_image():
    """`part: all`, which the refusal names, would train on more than was asked for."""
    train, held_out = parted("mix", "train", 0.05), parted("test", "held_out", 0.3)
    train["selection"]["folders"], held_out["selection"]["folders"] = ["gqa"], ["textvqa"]
    data = {"name": "x", "sources": [train], "evaluation": {"source": held_out}}
    PipelineConfig.model_validate(data)
    held_out["selection"]["folders"] = ["textvqa", "gqa"]
    with pytest.raises(ValueError, match="could be in both parts"):
        PipelineConfig.model_validate(data)


def test_rules_that_a_config_may_name_are_those_that_score():
    assert get_args(RuleName) == known_benchmarks()


def test_unknown_name_lists_the_packaged_ones():
    with pytest.raises(
        ConfigError, match=r"no configuration 'referense': packaged are .*reference"
    ):
        load_config("referense")


@pytest.mark.parametrize(
    "path", sorted((CHECKOUT / "configs").glob("*.yaml")), ids=lambda p: p.stem
)
def test_every_packaged_config_is_valid_and_named_after_its_file(path: Path):
    config = load_config(path.stem)
    assert config.name == path.stem
    assert PipelineConfig.model_validate_json(config.model_dump_json()) == config


PROFILE_LABELS = load_profile("reference").labels


def label_config(**given: object) -> PipelineConfig:
    return PipelineConfig.model_validate(MINIMAL | {"labels": given})


def test_labels_of_a_config_change_only_the_keys_they_give():
    """One threshold took all other label settings of the model's profile away."""
    config = label_config(foreground_ratio_threshold=0.3, sink_threshold=0.5)
    expected = {"foreground_ratio_threshold": 0.3, "sink_threshold": 0.5}
    assert PROFILE_LABELS.strongest_region_only
    assert config.label_settings(load_profile("reference")) == PROFILE_LABELS.model_copy(
        update=expected
    )
    assert config.model_dump(mode="json")["labels"] == expected
    assert PipelineConfig.model_validate_json(config.model_dump_json()) == config


def test_a_label_key_may_be_changed_to_nothing():
    """``null`` says something else than leaving a key out."""
    assert PROFILE_LABELS.max_rival_ratio is not None
    changed = label_config(max_rival_ratio=None).label_settings(load_profile("reference"))
    assert changed == PROFILE_LABELS.model_copy(update={"max_rival_ratio": None})


def test_labels_that_give_no_key_or_all_keys_are_the_recipe_of_before():
    profile = load_profile("reference")
    assert PipelineConfig.model_validate(MINIMAL).label_settings(profile) is profile.labels
    every = LabelSettings.preset("reference-qwen")
    config = label_config(**every.model_dump())
    assert config.label_settings(profile) == every
    assert config.model_dump(mode="json")["labels"] == every.model_dump(mode="json")


def test_labels_that_do_not_go_with_the_profile_are_refused():
    assert PROFILE_LABELS.background_ratio_threshold == 0.1
    config = label_config(foreground_ratio_threshold=0.05)
    message = "config 'mine': labels over those of profile 'reference': background_ratio_thresh"
    with pytest.raises(ConfigError, match=message):
        config.label_settings(load_profile("reference"))


def test_regions_of_no_possible_size_are_refused():
    """Every component was dropped, and nothing ever zoomed into."""
    regions = {"min_component_cells": 9, "max_component_cells": 8}
    config = PipelineConfig.model_validate(MINIMAL | {"regions": regions})
    message = "regions over those of profile 'reference': min_component_cells must not exceed max_c"
    with pytest.raises(ConfigError, match=message):
        config.region_settings(load_profile("reference"))


def test_training_settings_are_the_profiles_unless_the_config_changes_keys():
    """Every model that a configuration of a user's own named was trained by one recipe."""
    bare = PipelineConfig.model_validate(MINIMAL)
    recipes = {name: bare.training_settings(load_profile(name)) for name in packaged_profiles()}
    assert recipes.pop("reference") == TrainingConfig(
        num_epochs=4, batch_size=16, learning_rate=3e-3
    )
    for name, recipe in recipes.items():
        as_qwen = (
            "aya",
            "cosmos",
            "gemma",
            "glm",
            "internvl",
            "lfm",
            "llava-onevision",
            "minicpm",
            "ministral",
            "mistral",
            "north",
            "qianfan",
            "qwen",
        )
        rate, size = (1e-4, 128) if name.startswith(as_qwen) else (5e-5, 512)
        assert (recipe.learning_rate, recipe.batch_size, recipe.num_epochs) == (rate, size, 1), name
    config = PipelineConfig.model_validate(MINIMAL | {"training": {"num_epochs": 9}})
    changed = config.training_settings(load_profile("reference"))
    assert (changed.num_epochs, changed.batch_size) == (9, 16)
    assert config.model_dump(mode="json")["training"] == {"num_epochs": 9}
    assert PipelineConfig.model_validate_json(config.model_dump_json()) == config


def test_regions_of_a_config_change_only_the_keys_they_give():
    """More regions took the gate, the margin and the relative threshold away."""
    profile = load_profile("llava-1.5-7b")
    assert profile.regions == RegionSettings.preset("default")
    config = PipelineConfig.model_validate(MINIMAL | {"regions": {"max_regions": 3}})
    assert config.region_settings(profile) == profile.regions.with_changes(max_regions=3)
    bare = RegionSettings()
    whole = PipelineConfig.model_validate(MINIMAL | {"regions": bare.model_dump()})
    assert whole.region_settings(profile) == bare
    assert PipelineConfig.model_validate_json(whole.model_dump_json()) == whole
    commented_out = PipelineConfig.model_validate(MINIMAL | {"regions": None})
    assert commented_out.region_settings(profile) == profile.regions


def test_region_settings_are_what_they_were_before_keys_were_added():
    """Or an RPN of before would be trained anew, and answers begun with it would be refused."""
    whole = RegionSettings.preset("default").model_copy(update={"mask_threshold_ratio": None})
    later = {"mask_threshold_ratio", "crop_tokens", "mask_tower", "withdraw_image"}
    assert later.isdisjoint(whole.identity())
    cheap = whole.with_changes(crop_tokens=36, mask_tower=True, withdraw_image=True)
    assert RegionSettings.model_validate(cheap.identity()) == cheap
    assert RegionSettings.model_validate(whole.identity()) == whole
    assert RegionSettings.preset("default").identity()["mask_threshold_ratio"] == 1.0


@pytest.mark.parametrize(
    ("changes", "settings"),
    [
        ("LabelChanges", LabelSettings),
        ("TrainingChanges", TrainingConfig),
        ("RegionChanges", RegionSettings),
    ],
)
def test_a_form_for_changes_fills_nothing_in(changes: str, settings: type[Settings]):
    """Under Prefect, values that a form fills in would all count as given."""
    fields = PipelineConfig.model_json_schema()["$defs"][changes]["properties"]
    assert list(fields) == list(settings.model_fields)
    assert not any("default" in field for field in fields.values())


def test_every_packaged_profile_has_a_config():
    configs = (load_config(path.stem) for path in (CHECKOUT / "configs").glob("*.yaml"))
    assert {config.model.profile for config in configs} >= set(packaged_profiles())


def test_another_model_does_not_take_over_what_was_measured_on_the_built_in_one(tmp_path: Path):
    """``sdrpn run --profile`` made another model answer with small crops, and did not say so."""
    own = tmp_path / "own.yaml"
    cheap = {"crop_tokens": 64, "withdraw_image": True}
    own.write_text(yaml.safe_dump(MINIMAL | {"regions": cheap}))
    for config, profile, expected in (
        ("reference", None, (36, True)),
        ("reference", "llava-1.5-7b", (None, False)),
        (str(own), "llava-1.5-7b", (64, True)),
    ):
        chosen = pipeline_config(config, profile=profile)
        regions = chosen.region_settings(profile_of(chosen.model))
        assert (regions.crop_tokens, regions.withdraw_image) == expected


def test_changes_to_settings_are_checked() -> None:
    """``model_copy`` takes any key and any value, and the crop was nowhere."""
    regions = RegionSettings.preset("default")
    assert regions.with_changes(max_regions=3) == regions.model_copy(update={"max_regions": 3})
    told = {
        "key 'margn' is not known: remove it or mend its spelling; valid are blur_sig": {
            "margn": 3
        },
        "key 'max_regions': Input should be greater than or equal to 1": {"max_regions": -3},
        "key 'margin_cells': Input should be a valid number, ": {"margin_cells": "x"},
    }
    for message, changes in told.items():
        with pytest.raises(WrongSetting, match=f"^{message}") as caught:
            regions.with_changes(**changes)
        assert "\n" not in str(caught.value)


def test_an_evaluation_takes_the_rpns_threshold_or_its_own() -> None:
    """The evaluation answers with it, and the report finds the regions that it answered with."""
    source = SceneSource(name="held_out", num_images=1)
    for chosen, expected in ((None, 0.6), (0.3, 0.3)):
        evaluation = EvaluationConfig(source=source, region_threshold=chosen)
        assert evaluation.threshold_beside(0.6) == expected


@pytest.mark.parametrize("kind", [LlavaMixSource, VisualCotSource])
def test_one_folder_of_images_is_a_list_of_one_place(
    kind: type[LlavaMixSource] | type[VisualCotSource],
):
    short = kind(name="mix", records="records.json", images="pictures")
    assert short.image_places == (ImageFolder(uri="pictures"),)
    places = (ImageArchive(file="pictures.zip", folder="gqa"), ImageFolder(uri="elsewhere"))
    assert short.model_copy(update={"images": places}).image_places == places
