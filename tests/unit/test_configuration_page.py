"""docs/configuration.md names every section and label setting, with today's defaults."""

import re

import yaml

from data_contracts.configs import PipelineConfig
from data_contracts.label_settings import LabelSettings
from tests.architecture.source_tree import CHECKOUT

PAGE = (CHECKOUT / "docs" / "configuration.md").read_text(encoding="utf-8")
SECTIONS, LABELS = PAGE.split("## Label settings")


def test_the_page_names_every_section():
    named = re.findall(r"^\| `(\w+)` \|", SECTIONS, re.MULTILINE)
    assert named == list(PipelineConfig.model_fields)


def test_the_page_names_every_label_setting_and_its_default():
    rows = re.findall(r"^\| `(\w+)` \| `([^`]+)` \|", LABELS, re.MULTILINE)
    assert {key: yaml.safe_load(value) for key, value in rows} == LabelSettings().model_dump()


def test_the_example_is_valid():
    (example,) = re.findall(r"```yaml\n(.*?)```", LABELS, re.DOTALL)
    sources = [{"type": "scenes", "name": "s", "num_images": 4}]
    PipelineConfig.model_validate({"name": "x", "sources": sources} | yaml.safe_load(example))
