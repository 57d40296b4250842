"""Configurations: what is wrong is named with its key, and what is identity is pinned."""

from pathlib import Path
from typing import get_args

import pytest
import yaml

from data_contracts.configs import ConfigError, PipelineConfig, RuleName
from data_contracts.sources import SceneSource
from data_contracts.training import TrainingConfig
from flows.config_files import load_config
from sdrpn_core.benchmarks.scoring import known_benchmarks
from sdrpn_core.models.profiles import packaged_profiles
from tests.architecture.source_tree import CHECKOUT

MINIMAL = {"name": "mine", "sources": [{"type": "scenes", "name": "s", "num_images": 4}]}


def write(folder: Path, data: object) -> Path:
    path = folder / "config.yaml"
    path.write_text(data if isinstance(data, str) else yaml.safe_dump(data))
    return path


def test_minimal_config_takes_every_default(tmp_path: Path):
    config = PipelineConfig.load(write(tmp_path, MINIMAL))
    assert config.training == TrainingConfig()
    assert config.evaluation is None
    assert config.sources == (SceneSource(name="s", num_images=4),)


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
        ({"labels": {"background_ratio_threshold": 0.9}}, r"must not exceed foreground_ratio"),
        ({"model": {"profile": 7}}, r"key 'model.profile.name': .*valid string"),
        ({"model": {"profile": {"name": "x"}}}, r"'model.profile.written_out.heads' is missing"),
        ({"calibration": {"num_scene": 9}}, r"key 'calibration.num_scene' is not known"),
    ],
)
def test_error_names_file_key_and_remedy(tmp_path: Path, change: dict, message: str):
    data = {name: value for name, value in (MINIMAL | change).items() if value is not None}
    with pytest.raises(ConfigError, match=message) as caught:
        PipelineConfig.load(write(tmp_path, data))
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


HELD_OUT = {"type": "scenes", "name": "held_out", "num_images": 4}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"benchmark": "textvqua"}, r"key 'evaluation.benchmark': .*'scenes', 'textvqa'"),
        ({"methods": ["base", "sd_rpm"]}, r"key 'evaluation.methods.1': .*'sdrpn'"),
        (
            {"benchmarks": [{"type": "benchmark", "task": "textvqa"}]},
            r"key 'evaluation.benchmarks.0.task': .*'textvqa_val'",
        ),
    ],
)
def test_wrong_benchmark_or_method_is_found_when_the_config_is_read(
    tmp_path: Path, change: dict, message: str
):
    """A scoring rule that does not exist was found when the first answer was scored, after
    training."""
    data = MINIMAL | {"evaluation": {"source": HELD_OUT, **change}}
    with pytest.raises(ConfigError, match=message):
        PipelineConfig.load(write(tmp_path, data))


def test_rules_that_a_config_may_name_are_those_that_score():
    assert get_args(RuleName) == known_benchmarks()


@pytest.mark.parametrize(
    ("text", "message"),
    [("name: [", "cannot be read as YAML"), ("- 1", "key 'top level'"), ("", "key 'top level'")],
)
def test_not_a_mapping(tmp_path: Path, text: str, message: str):
    with pytest.raises(ConfigError, match=message):
        PipelineConfig.load(write(tmp_path, text))


def test_missing_file_says_where_examples_are(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"nowhere.yaml: no such file; see configs/"):
        load_config(str(tmp_path / "nowhere.yaml"))


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


def test_every_packaged_profile_has_a_config():
    configs = (load_config(path.stem) for path in (CHECKOUT / "configs").glob("*.yaml"))
    assert {config.model.profile for config in configs} >= set(packaged_profiles())
