"""lmms-eval, unmodified and in a process of its own, runs the zoom pipeline as a model."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import lmms_eval.tasks
import numpy as np
import pytest
import yaml
from lmms_eval.api.instance import Instance
from PIL import ExifTags, Image

from data_contracts.enums import BenchmarkTask
from data_contracts.json_lines import json_lines
from data_contracts.label_settings import RegionSettings
from data_contracts.training import TrainingConfig
from sdrpn_core.benchmarks import aggregate
from sdrpn_core.benchmarks.hub_rows import hub_documents
from sdrpn_core.benchmarks.tasks import TASKS
from sdrpn_core.images import decode_image
from sdrpn_core.lmms_eval_plugin.model import SdrpnModel, UnsupportedRequest
from sdrpn_core.models.loading import load_adapter
from sdrpn_core.pipeline import ZoomPipeline
from sdrpn_core.rpn.training import train_rpn
from tasks.rpn_files import save_checkpoint
from tests.architecture.source_tree import CHECKOUT
from tests.benchmark_tables import rows, write_table
from tests.image_files import encoded
from tests.rpn_scenes import bright_patch_examples, loader
from tests.tiny_models import tiny_llava

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

RUN = (BenchmarkTask.TEXTVQA, BenchmarkTask.DOCVQA, BenchmarkTask.POPE)
NUM_DOCUMENTS = 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, an RPN for it, and lmms-eval's own tasks over local files."""
    folder = tmp_path_factory.mktemp("plugin")
    adapter = load_adapter(tiny_llava(folder / "model"), device="cpu")
    examples, images = bright_patch_examples(4)
    checkpoint = train_rpn(
        adapter,
        examples,
        loader(images),
        TrainingConfig(batch_size=4),
        shape=adapter.profile.rpn,
        regions=RegionSettings.preset("default"),
        label_set="merge-labels/0123456789abcdef0123",
        micro_batch_size=4,
        cache_bytes=2**30,
    )
    save_checkpoint(checkpoint, folder / "rpn")
    (folder / "tasks").mkdir()
    for task in RUN:
        _write_task(folder, task)
    return folder


def _write_task(folder: Path, task: BenchmarkTask) -> None:
    """lmms-eval's own task file, but for where its rows are."""
    spec = TASKS[task]
    hub = write_table(folder / "hub" / task.value, task, NUM_DOCUMENTS, num_files=1)
    [table] = (hub / (spec.folder or "data")).iterdir()
    original = Path(lmms_eval.tasks.__file__).parent / spec.rule / f"{task.value}.yaml"
    settings = {
        "include": str(original),
        "task": f"local_{task.value}",
        "dataset_path": "parquet",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {spec.split: str(table)}},
    }
    (folder / "tasks" / f"local_{task.value}.yaml").write_text(yaml.safe_dump(settings))


def run_lmms_eval(
    folder: Path,
    out: str,
    *arguments: str,
    launcher: Sequence[str] = (),
    tasks: Sequence[str] = RUN,
) -> str:
    """Run it with results below ``out``; returns what it printed."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(CHECKOUT),
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(folder / "hf"),
    }
    command = [sys.executable, *launcher, "-m", "lmms_eval", "--model", "sdrpn", "--device", "cpu"]
    command += ["--include_path", str(folder / "tasks"), "--output_path", str(folder / out)]
    command += ["--log_samples", "--tasks", ",".join(f"local_{task}" for task in tasks)]
    done = subprocess.run(
        [*command, *arguments], capture_output=True, text=True, env=environment, cwd=folder
    )
    return done.stdout + done.stderr


def samples(folder: Path, out: str, task: BenchmarkTask) -> list[str]:
    """The logged answers of one task, by document."""
    [file] = (folder / out).rglob(f"*_samples_local_{task.value}.jsonl")
    logged = json_lines(file.read_bytes())
    logged.sort(key=lambda sample: sample["doc_id"])
    return [sample["filtered_resps"] for sample in logged]


def our_answers(folder: Path, task: BenchmarkTask, **settings: object) -> list[str]:
    """Of the pipeline itself, to the same documents."""
    pipeline = ZoomPipeline.from_pretrained(
        str(folder / "model"), folder / "rpn", device="cpu", dtype="float32", **settings
    )
    spec = TASKS[task]
    documents = list(hub_documents(spec, rows(task, NUM_DOCUMENTS)))
    found = pipeline.answer(
        [decode_image(document.image) for document in documents],
        [document.question for document in documents],
        max_new_tokens=spec.max_new_tokens or 8,
    )
    return [answer.text.strip() for answer in found]


def test_lmms_eval_answers_and_scores_as_we_do(folder: Path):
    arguments = f"model={folder / 'model'},rpn={folder / 'rpn'},max_new_tokens=8"
    arguments += ",crop_tokens=9,withdraw_image=True"
    printed = run_lmms_eval(folder, "out", "--model_args", arguments, "--batch_size", "4")
    found = list((folder / "out").rglob("*_results.json"))
    assert len(found) == 1, printed[-4000:]
    results = json.loads(found[0].read_text())
    num_answered = 0
    for task in RUN:
        spec, source = TASKS[task], rows(task, NUM_DOCUMENTS)
        ours = our_answers(folder, task, crop_tokens=9, withdraw_image=True)
        assert [text.strip() for text in samples(folder, "out", task)] == ours
        num_answered += sum(text != "" for text in ours)
        theirs = results["results"][f"local_{task.value}"]
        for name, value in aggregate(spec.rule, list(zip(ours, source, strict=True))).items():
            if f"{name},none" in theirs:
                assert theirs[f"{name},none"] == pytest.approx(value)
    assert num_answered > 0


def test_two_processes_share_the_documents(folder: Path):
    """lmms-eval asks a model for its device where there are several, and ours had none."""
    arguments = f"model={folder / 'model'},rpn={folder / 'rpn'},max_new_tokens=8"
    tasks = (BenchmarkTask.POPE,)
    options = ("--model_args", arguments, "--batch_size", "4")
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    printed = run_lmms_eval(folder, "shared", *options, launcher=torchrun, tasks=tasks)
    assert list((folder / "shared").rglob("*_results.json")), printed[-4000:]
    shared = [text.strip() for text in samples(folder, "shared", BenchmarkTask.POPE)]
    assert len(shared) == NUM_DOCUMENTS
    assert shared == our_answers(folder, BenchmarkTask.POPE)


@pytest.mark.parametrize("zoom", [False, True])
def test_an_image_is_seen_upright_with_the_zoom_and_without(folder: Path, zoom: bool):
    """The baseline saw it as it lies in its file."""
    upright = np.random.default_rng(0).integers(0, 256, (40, 20, 3), np.uint8).repeat(3, axis=0)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    turned = np.rot90(upright)  # by what orientation 6 undoes
    images = [
        Image.open(io.BytesIO(encoded(Image.fromarray(upright)))),
        Image.open(io.BytesIO(encoded(Image.fromarray(turned), exif=exif))),
        Image.open(io.BytesIO(encoded(Image.fromarray(turned)))),
    ]
    model = SdrpnModel(str(folder / "rpn"), zoom=zoom, device="cpu", batch_size=3)
    model.task_dict["own"] = {"test": images}
    settings = {"max_new_tokens": 12}
    asked = [
        Instance(
            request_type="generate_until",
            arguments=("it", settings, lambda image: [image], number, "own", "test"),
            idx=0,
            metadata={"task": "own", "doc_id": number, "repeats": 1},
        )
        for number in range(len(images))
    ]
    as_seen, with_orientation, as_stored = model.generate_until(asked)
    assert with_orientation == as_seen != as_stored


@pytest.mark.parametrize("size", [0, "0", "\u00b2", "auto"])
def test_a_batch_of_nothing_is_refused(size: int | str):
    """The first of no questions was a traceback, once all was loaded."""
    with pytest.raises(UnsupportedRequest, match="give a number, 1 or more"):
        SdrpnModel("no-such-rpn", batch_size=size)


def test_a_missing_rpn_is_explained(folder: Path):
    """lmms-eval reports a model that cannot be loaded, and ends without results."""
    printed = run_lmms_eval(folder, "none", "--model_args", f"rpn={folder / 'no-such-rpn'}")
    assert "no-such-rpn" in printed
    assert not list((folder / "none").rglob("*_results.json"))
