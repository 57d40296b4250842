"""How files of settings are read: YAML and JSON, keys given twice, merges, what cannot be read."""

import json
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from data_contracts.base import Settings
from data_contracts.configs import PipelineConfig
from data_contracts.runtime import RuntimeConfig
from data_contracts.settings_files import ConfigError, load_settings, parse_lines, parse_settings
from data_contracts.sources import BenchmarkSource, LlavaMixSource
from flows.config_files import load_config
from tests.config_samples import MINIMAL, write


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: [", "cannot be read as YAML"),
        ("- 1", r": a section .* not \[1\]$"),
        ("", "key 'name' is missing: add it; key 'sources' is missing: add it, or give --data"),
    ],
)
def test_not_a_mapping(tmp_path: Path, text: str, message: str):
    with pytest.raises(ConfigError, match=message):
        PipelineConfig.load(write(tmp_path, text))


@pytest.mark.parametrize("text", ["", "# store: s3://bucket\n"])
def test_a_file_without_keys_leaves_all_as_it_is(tmp_path: Path, text: str):
    """No key is needed, but with the last one commented out a section was."""
    assert load_settings(RuntimeConfig, write(tmp_path, text)) == RuntimeConfig()


@pytest.mark.parametrize("section", ["model", "records", "labels", "evaluation", "report"])
def test_a_section_without_keys_is_left_out(tmp_path: Path, section: str):
    """With its last key commented out, a section was of the wrong type."""
    file = write(tmp_path, f"{yaml.safe_dump(MINIMAL)}{section}:\n")
    assert PipelineConfig.load(file) == PipelineConfig.model_validate(MINIMAL)


MINIMAL_TEXT = yaml.safe_dump(MINIMAL, sort_keys=False)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "name: other\n" + MINIMAL_TEXT,
            r"line 2: key 'name' is given twice, first in line 1; keep",
        ),
        (
            MINIMAL_TEXT + "records:\n  max_records: 9\n  turns: all\n  'max_records': 10\n",
            r"line 9: key 'max_records' is given twice, first in line 7; keep one of them$",
        ),
        (
            "name: a\nsources:\n- {type: scenes, name: s, num_images: 4, seed: 1, seed: 2}\n",
            r"line 3: key 'seed' is given twice, first in line 3",
        ),
        (
            MINIMAL_TEXT + "labels: &l {sink_threshold: 0.1}\nregions:\n  <<: *l\n  <<: *l\n"
            "  margin_cells: 1\n  margin_cells: 1\n",
            r"line 11: key 'margin_cells' is given twice, first in line 10",
        ),
    ],
)
def test_a_key_given_twice_is_refused(tmp_path: Path, text: str, message: str):
    """The last one counted without a word: half of a pasted section was not what ran."""
    with pytest.raises(ConfigError, match=rf"config.yaml: {message}") as caught:
        PipelineConfig.load(write(tmp_path, text))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (
            '"name": "other"',
            r"key 'name' is given twice, in the section of name, sources, name; keep one of them$",
        ),
        (
            '"records": {"turns": "all", "max_records": 1, "turns": "first"}',
            r"key 'turns' is given twice, in the section of turns, max_records, turns; keep one",
        ),
    ],
)
def test_a_key_given_twice_in_json_is_refused(tmp_path: Path, section: str, message: str):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(MINIMAL)[:-1] + f", {section}}}")
    with pytest.raises(ConfigError, match=rf"config.json: {message}"):
        PipelineConfig.load(path)


@pytest.mark.parametrize("suffix", ["json", "yaml"])
def test_what_is_nested_without_end_is_one_line(tmp_path: Path, suffix: str):
    path = tmp_path / f"config.{suffix}"
    path.write_text("[" * 100_000 + "]" * 100_000)  # Pythons differ in how deep they read
    with pytest.raises(ConfigError, match=r"config\..*: it is nested too deeply$"):
        load_settings(RuntimeConfig, path)
    with pytest.raises(ConfigError, match=r"asked line 1: .*nested too deeply"):
        parse_lines(RuntimeConfig, path.read_bytes(), "asked")


def test_a_value_is_shown_by_its_beginning(tmp_path: Path):
    """Each alias stands for nine of the one before: as text, the last has four billion letters."""
    levels = [f"  - &a{n + 1} [{', '.join([f'*a{n}'] * 9)}]" for n in range(10)]
    path = tmp_path / "runtime.yaml"
    path.write_text("\n".join(["storage_options: {}", "ray:", "  - &a0 [x]", *levels]))
    with pytest.raises(
        ConfigError, match=r"key 'ray': a section .* is needed, not \[\['x'\], \["
    ) as caught:
        load_settings(RuntimeConfig, path)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        (RuntimeConfig, {"y" * 3000: 1}),
        (PipelineConfig, MINIMAL | {"sources": [{"type": "y" * 3000}]}),
    ],
)
def test_a_long_key_or_type_is_shown_by_its_beginning(
    kind: type[Settings], changes: dict[str, object]
):
    """What is pasted into a wrong place was repeated whole, and hid the remedy."""
    with pytest.raises(ConfigError, match=r"y{60}\.\.\.") as caught:
        parse_settings(kind, changes, "config")
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"records": "https://user:secret@host/a.json"}, "records"),
        ({"records": "HTTPS://secret@host/a.json"}, "records"),
        ({"records": {"uri": "a.json", "mirrors": ["ftp://user:secret@host/a"]}}, r"records\..*0"),
        ({"images": "s3://key:secret@bucket/images"}, "images"),
        ({"images": [{"type": "folder", "uri": "http://user:secret@host"}]}, r"images\..*uri"),
        ({"images": [{"type": "archive", "file": "http://u:secret@host/a"}]}, r"images\..*file"),
    ],
)
def test_no_address_holds_a_password(changes: dict[str, object], key: str):
    """They stood in recipes, logs, reports and Prefect's pages."""
    source = {"name": "a", "records": "a.json", "images": "images", **changes}
    with pytest.raises(
        ConfigError, match=rf"key '{key}': the address holds .* ~/\.netrc"
    ) as caught:
        parse_settings(LlavaMixSource, source, "mix")
    assert "secret" not in str(caught.value)
    benchmark = {"task": "pope", "boxes": "s3://key:secret@bucket/boxes.jsonl"}
    with pytest.raises(ConfigError, match="key 'boxes': the address holds"):
        parse_settings(BenchmarkSource, benchmark, "config")
    with pytest.raises(ConfigError) as caught:
        parse_settings(PipelineConfig, {"name": "a", "sources": str(changes)}, "config")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("options", [["secret"], "secret", {"storage_option": "secret"}])
def test_an_error_that_prefect_logs_shows_no_value(options: object):
    changes = options if isinstance(options, dict) else {"storage_options": options}
    with pytest.raises(ValidationError) as caught:
        RuntimeConfig.model_validate(changes)
    assert "storage_option" in str(caught.value)
    assert "secret" not in str(caught.value)


def test_an_at_sign_is_no_password():
    for address in (
        "hf://datasets/owner/name@refs/convert/parquet/a.parquet",
        "abfs://container@account.dfs.core.windows.net/a.json",
        "https://host/a@b:c/@.json",
        "/data/a:b@c.json",
    ):
        source = {"name": "a", "records": address, "images": "images"}
        assert parse_settings(LlavaMixSource, source, "mix").records == address


def test_what_is_merged_gives_way_to_keys_beside_it(tmp_path: Path):
    """Keys that ``<<`` brings are not given twice, at whatever depth and in whatever order."""
    text = """
evaluation:
  source: &other
    <<: &scenes {type: scenes, name: s, num_images: 4, seed: 1}
    name: other
    seed: 2
name: mine
sources:
  - *scenes
  - <<: *other
    name: third
    num_images: 5
  - {seed: 9, <<: [*other, *scenes], name: fourth}
"""
    config = PipelineConfig.load(write(tmp_path, text))
    assert [(s.name, s.num_images, s.seed) for s in config.sources] == [
        ("s", 4, 1),
        ("third", 5, 2),
        ("fourth", 4, 9),
    ]
    merged = "<<: &b {<<: &a {name: a}, name: b}\n" + MINIMAL_TEXT
    assert PipelineConfig.load(write(tmp_path, merged)).name == "mine"


@pytest.mark.parametrize("start", ["", "\ufeff"])
@pytest.mark.parametrize(
    ("kind", "data"), [(PipelineConfig, MINIMAL), (RuntimeConfig, {"batch_size": 3})]
)
def test_json_may_be_indented_with_tabs(
    tmp_path: Path, kind: type[Settings], data: dict, start: str
):
    """It was read as YAML, which knows no tabs there, but editors and ``jq --tab`` write them."""
    path = tmp_path / "settings.json"
    path.write_text(start + json.dumps(data, indent="\t"), encoding="utf-8")
    assert load_settings(kind, path) == kind.model_validate(data)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("c.json", "{'name': 1}", r"cannot be read as JSON: Expecting property name .*line 1"),
        ("c.yaml", "name:\n\t- 1", r"cannot be read as YAML: while scanning .*line 2"),
        ("c.yaml", "name: 2024-13-01", r"cannot be read as YAML: month must be in 1..12"),
        ("c.yaml", "name: !!timestamp x", r"cannot be read as YAML: a value is not what its tag"),
        ("c.yaml", "name: !!int ''", r"cannot be read as YAML: a value is not what its tag"),
        ("c.yaml", r'name: "\ud800"', r"cannot be read as YAML: .*surrogates not allowed"),
        ("c.json", r'{"name": "\ud800"}', r"cannot be read as JSON: .*surrogates not allowed"),
    ],
)
def test_what_cannot_be_read_is_said_in_one_line(
    tmp_path: Path, name: str, text: str, message: str
):
    """A thirteenth month was a traceback, and so was what no artifact can hold, once it was to."""
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=rf"{name}: {message}") as caught:
        PipelineConfig.load(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_missing_file_says_where_examples_are(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"nowhere.yaml: no such file; see configs/"):
        load_config(str(tmp_path / "nowhere.yaml"))


def test_another_missing_file_is_not_sent_to_configurations(tmp_path: Path):
    """``--runtime`` was: of its keys, nothing is there."""
    message = r"no such file; check the path; its keys: store, storage_options, device, "
    with pytest.raises(ConfigError, match=message):
        load_settings(RuntimeConfig, tmp_path / "nowhere.yaml")
