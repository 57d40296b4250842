"""docs/configuration.md names every section, label and runtime setting, with today's defaults."""

import re
from typing import Any

import yaml

from data_contracts.configs import PipelineConfig
from data_contracts.label_settings import LabelSettings
from data_contracts.runtime import DownloadSettings, RaySettings, RuntimeConfig
from tests.architecture.source_tree import CHECKOUT

PAGE = (CHECKOUT / "docs" / "configuration.md").read_text(encoding="utf-8")
SECTIONS, REST = PAGE.split("## Label settings")
LABELS, RUNTIME = REST.split("## Runtime file")


def test_the_page_names_every_section():
    named = re.findall(r"^\| `(\w+)` \|", SECTIONS, re.MULTILINE)
    assert named == list(PipelineConfig.model_fields)


def defaults_of(table: str) -> dict[str, Any]:
    rows = re.findall(r"^\| `(\w+)` \| `([^`]+)` \|", table, re.MULTILINE)
    return {key: yaml.safe_load(value) for key, value in rows}


def test_the_page_names_every_label_setting_and_its_default():
    assert defaults_of(LABELS) == LabelSettings().model_dump()


def test_the_page_names_every_runtime_setting_and_its_default():
    settings, downloads = RUNTIME.split("| key of `downloads` |")
    assert defaults_of(settings) == RuntimeConfig().model_dump(exclude={"downloads"})
    assert defaults_of(downloads) == DownloadSettings().model_dump()
    (row,) = re.findall(r"^\| `ray` .*$", settings, re.MULTILINE)
    assert set(RaySettings.model_fields) <= set(re.findall(r"`(\w+)`", row))


def test_the_first_example_is_a_whole_configuration():
    (example,) = re.findall(r"```yaml\n(.*?)```", SECTIONS, re.DOTALL)
    PipelineConfig.model_validate(yaml.safe_load(example))


def test_the_example_of_label_settings_is_valid():
    (example,) = re.findall(r"```yaml\n(.*?)```", LABELS, re.DOTALL)
    sources = [{"type": "scenes", "name": "s", "num_images": 4}]
    PipelineConfig.model_validate({"name": "x", "sources": sources} | yaml.safe_load(example))
