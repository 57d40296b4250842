"""The commands for what the authors published, as a user types them."""

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import yaml

from tasks.artifacts.store import ArtifactStore
from tests.e2e.command_line import sdrpn
from tests.mixes import write_image
from tests.pipelines import write_tiny_pipeline
from tests.published import llava_row, published_llava, write_pickle, write_row_images

pytestmark = pytest.mark.timeout(600)


def bright_spot(number: int) -> np.ndarray:
    """A flat 5 x 5 map, the grid of the tiny model."""
    values = np.full((5, 5), 0.001)
    values[1 + number % 3, number % 5] = 0.2
    return values.ravel()


def test_from_label_pickles_to_an_rpn_that_answers(tmp_path: Path) -> None:
    write_tiny_pipeline(tmp_path / "run")
    rows = [
        row | {"grounding_attn_o2i": bright_spot(number), "sink_attn": np.zeros(25)}
        for number, row in enumerate(map(llava_row, range(8)))
    ]
    images = write_row_images(tmp_path / "images", rows)
    labels = write_pickle(tmp_path / "pseudo.pkl", [*rows, rows[0], None])
    summary, store = tmp_path / "summary.json", tmp_path / "store"
    options = ("--config", tmp_path / "run/config.yaml", "--store", store, "--json", summary)
    command = ("import-labels", labels, "--images", images, "--until", "train-rpn", *options)
    result = sdrpn(*command)
    assert result.exit_code == 0, result.output
    assert "8 rows imported, 2 rejected" in result.output
    written = json.loads(summary.read_text())
    assert [row["stage"] for row in written["stages"]] == [
        "extract-attention",
        "make-labels",
        "merge-labels",
        "train-rpn",
    ]
    assert sum(written["reasons"].values()) == written["num_rejected"] == 2
    again = sdrpn(*command)
    assert again.exit_code == 0, again.output
    assert {row["state"] for row in json.loads(summary.read_text())["stages"]} == {"reused"}
    write_image(tmp_path / "picture.png", 7)
    answer = sdrpn("predict", tmp_path / "picture.png", "what is it ?", "--store", store)
    assert answer.exit_code == 0, answer.output

    exported, imported = tmp_path / "merged", tmp_path / "rpn"
    result = sdrpn("export", "--store", store, "--out", exported, "--max-shard-gib", 0.001)
    assert result.exit_code == 0, result.output
    assert (exported / "tokenizer.json").is_file()
    whole = sdrpn("export", "--store", store, "--out", tmp_path / "whole")
    assert f"1 weight file in {tmp_path}/whole\n" in whole.output
    result = sdrpn("import-checkpoint", exported, "--out", imported)
    assert result.exit_code == 0, result.output
    ref = written["stages"][-1]["artifact"]
    trained = ArtifactStore(str(store)).storage.find(f"train-rpn/{ref}/files")
    weights = next(item.key for item in trained if item.key.endswith("rpn.safetensors"))
    assert (imported / "rpn.safetensors").read_bytes() == (store / weights).read_bytes()


def test_a_checkpoint_of_the_authors(tmp_path: Path) -> None:
    folder, profile, _ = published_llava(tmp_path)
    (tmp_path / "profile.yaml").write_text(yaml.safe_dump(profile.model_dump(mode="json")))
    options = ("--profile", tmp_path / "profile.yaml", "--out", tmp_path / "rpn")
    result = sdrpn("import-checkpoint", folder, *options)
    assert result.exit_code == 0, result.output
    assert "B = 2 (twig_K of config.json), R = 3" in result.output
    write_image(tmp_path / "picture.png", 7)
    options = ("--rpn", tmp_path / "rpn", "--store", tmp_path / "store")
    answer = sdrpn("predict", tmp_path / "picture.png", "what is it ?", *options, "--json")
    assert answer.exit_code == 0, answer.output
    seconds = json.loads(answer.stdout)["seconds"]
    assert seconds == {phase: round(spent, 4) for phase, spent in seconds.items()} != {}


class Malicious:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> object:
        return os.system, (f"touch {self.path}",)


def test_errors_are_one_line_and_say_what_to_do(tmp_path: Path) -> None:
    good = pickle.dumps([llava_row(0)])
    files = {
        "evil.pkl": pickle.dumps([Malicious(tmp_path / "canary")]),
        "cut.pkl": good[: len(good) // 2],
        "page.pkl": b"<!DOCTYPE html>",
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    expected = {
        "evil.pkl": ".system, which is neither plain data",
        "cut.pkl": "cut short; download it again",
        "page.pkl": "not a pickle",
        "none.pkl": "no such file",
    }
    for name, message in expected.items():
        options = ("--images", tmp_path, "--store", tmp_path / "store")
        result = sdrpn("import-labels", tmp_path / name, *options)
        assert result.exit_code == 1, name
        assert message in result.output
        assert "Traceback" not in result.output
    assert not (tmp_path / "canary").exists()
    (tmp_path / "good.pkl").write_bytes(good)
    options = ("--images", tmp_path, "--store", tmp_path / "store")
    # It was trained at the layer that a profile names before anybody has looked for a good one.
    onwards = ("--config", "qwen2-vl-7b", "--until", "train-rpn")
    result = sdrpn("import-labels", tmp_path / "good.pkl", *options, *onwards)
    assert result.exit_code == 2, "another profile is to be given"
    assert "profile 'qwen2-vl-7b' is uncalibrated" in result.output
    regions = {"model": {"profile": "qwen2.5-vl-7b"}, "regions": {"mask_tower": True}}
    wrong = {
        "mask_tower is for families with one fixed grid": regions,
        "background_ratio_threshold must not": {"labels": {"foreground_ratio_threshold": 0.01}},
    }
    config = tmp_path / "config.yaml"
    for message, settings in wrong.items():
        source = {"type": "scenes", "name": "unread", "num_images": 1}
        config.write_text(yaml.safe_dump({"name": "mine", "sources": [source], **settings}))
        onwards = ("--config", config, "--until", "train-rpn")
        result = sdrpn("import-labels", tmp_path / "good.pkl", *options, *onwards)
        assert result.exit_code == 2, result.output
        assert message in result.output
    assert not list((tmp_path / "store").glob("*/*/manifest.json")), "it was imported first"
    for until, message in (("train-rpn", "needs --config"), ("report", "choose from")):
        result = sdrpn("import-labels", tmp_path / "good.pkl", *options, "--until", until)
        assert result.exit_code == 2
        assert message in result.output
