"""``sdrpn run --dry-run`` and ``sdrpn doctor``: say everything, change nothing."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
import yaml
from huggingface_hub import HfFileSystem
from PIL import Image

from tasks import environment_checks
from tests.e2e.command_line import sdrpn
from tests.file_server import QUICK, Answer, FileServer, file_server

BAR = "\N{BOX DRAWINGS LIGHT VERTICAL}"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FileServer]:
    monkeypatch.setenv("COLUMNS", "220")
    with file_server() as running:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", running.root)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        running.json["/api/models/llava-hf/llava-1.5-7b-hf"] = {
            "id": "llava-hf/llava-1.5-7b-hf",
            "sha": "c" * 40,
            "tags": ["license:llama2"],
            "siblings": [{"rfilename": "model.safetensors", "size": 5 << 30, "blobId": "d" * 40}],
        }
        yield running


def write_config(folder: Path, server: FileServer) -> Path:
    server.add("/mix.json", b"[" + b" " * 1_550_000 + b"]")
    server.add("/images.zip", bytes(3_000_000))
    records = {"uri": server.url("/mix.json"), "licence": "CC BY 4.0", "sha256": "ab" * 32}
    archive = {"type": "archive", "folder": "gqa", "file": server.url("/images.zip")}
    source = {"type": "llava_mix", "name": "mix", "records": records, "images": [archive]}
    config = {"name": "x", "sources": [source], "model": {"profile": "llava-1.5-7b"}}
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def write_runtime(folder: Path) -> Path:
    settings = {"store": f"{folder}/store", "downloads": QUICK.model_dump()}
    path = folder / "runtime.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def test_dry_run_says_what_and_how_much_and_fetches_nothing(server: FileServer, tmp_path: Path):
    config = write_config(tmp_path, server)
    result = sdrpn("run", "--dry-run", "--config", config, "--store", tmp_path / "store")
    assert result.exit_code == 0, result.output
    for text in (
        "/mix.json",
        "CC BY 4.0",
        "abababababab",
        "none published",
        "not stated",
        "2.9 MiB",
        "extract-attention",
        "train-rpn",
        "to fetch: 4.3 MiB",
        "GPU time: about 0.2 h for what is left",
        f"model: 5.0 GiB of weights of llava-hf/llava-1.5-7b-hf to fetch to {tmp_path}/hub",
        f"hf://llava-hf/llava-1.5-7b-hf@{'c' * 40}/model.safetensors",
        "llama2",
        ", of which 2.0 GiB are to stay free (downloads.free_gib)",
    ):
        assert text in result.output, text
    assert not (tmp_path / "store").exists()
    assert {w for file in server.files.values() for w in file.requests} == {"bytes=0-0"}


def test_dry_run_of_a_source_that_is_not_there(server: FileServer, tmp_path: Path):
    config = write_config(tmp_path, server)
    del server.files["/images.zip"]
    result = sdrpn("run", "--dry-run", "--config", config, "--store", tmp_path / "store")
    assert result.exit_code == 1
    assert "error: " in result.stderr
    assert "/images.zip: does not exist; check the address" in result.stderr


def test_dry_run_where_a_server_is_silent(server: FileServer, tmp_path: Path):
    config = write_config(tmp_path, server)
    server.files["/images.zip"].behave = lambda number, wanted: Answer(status=503)
    result = sdrpn("run", "--dry-run", "--config", config, "--store", tmp_path / "store")
    assert result.exit_code == 0, result.output
    for text in (
        "to fetch: at least 1.5 MiB",
        "not known: the servers of 1 of 2 files do not answer; no size counts these, and a run "
        f"would stop at them now:\n  {server.url('/images.zip')}: the server answers 503 Service "
        "Unavailable\n",
    ):
        assert text in result.output, text


def test_signatures_of_addresses_are_used_and_not_shown(server: FileServer, tmp_path: Path):
    config, signature = write_config(tmp_path, server), "?X-Amz-Signature=s3cret/s3cret"
    for name in ("/mix.json", "/images.zip"):
        config.write_text(config.read_text().replace(name, f"{name}{signature}"))
    server.files["/images.zip"].behave = lambda number, wanted: Answer(status=503)
    options = ("--config", config, "--runtime", write_runtime(tmp_path))
    planned = sdrpn("run", "--dry-run", *options)
    assert planned.exit_code == 0, planned.output
    assert f"{server.url('/mix.json')}?X-Amz-Signature=... " in planned.output
    assert f"{server.url('/images.zip')}?X-Amz-Signature=...: the server" in planned.output
    del server.files["/images.zip"]
    refused = sdrpn("run", *options)
    assert "/images.zip?X-Amz-Signature=...: does not exist; check the address" in refused.output
    assert "s3cret" not in planned.output + refused.output


def test_dry_run_where_all_servers_are_silent(server: FileServer, tmp_path: Path):
    """At least 0.0 MiB were to be fetched."""
    config = write_config(tmp_path, server)
    for file in server.files.values():
        file.behave = lambda number, wanted: Answer(status=503)
    result = sdrpn("run", "--dry-run", "--config", config, "--store", tmp_path / "store")
    assert "\nto fetch: nobody says how much to " in result.output


@pytest.mark.skipif(torch.cuda.device_count() > 7, reason="the device is there")
def test_a_device_that_is_not_there_is_missed_before_anything_is_fetched(
    server: FileServer, tmp_path: Path
):
    """Hours of downloads came first."""
    config, runtime = write_config(tmp_path, server), write_runtime(tmp_path)
    arguments = ("--config", config, "--runtime", runtime, "--device", "cuda:7")
    result = sdrpn("stage", "merge-labels", *arguments)
    assert result.exit_code == 1
    assert "error: device 'cuda:7' cannot be used" in result.stderr
    assert {w for file in server.files.values() for w in file.requests} == {"bytes=0-0"}
    spread = yaml.safe_load(runtime.read_text()) | {"device_map": {"": "cuda:7"}}
    (tmp_path / "spread.yaml").write_text(yaml.safe_dump(spread))
    result = sdrpn("stage", "merge-labels", *arguments[:2], "--runtime", tmp_path / "spread.yaml")
    assert result.exit_code == 1
    assert "error: device 'cuda:7' cannot be used" in result.stderr
    # A machine that only fetches, for others with GPUs, needs none.
    result = sdrpn("stage", "download", *arguments)
    assert "cannot be used" not in result.stderr


def test_a_commit_that_cannot_be_had_is_missed_before_anything_is_fetched(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A branch was asked for, a commit taken at its word until the model was loaded."""
    config, runtime = write_config(tmp_path, server), write_runtime(tmp_path)
    plain = yaml.safe_load(config.read_text())
    plain["model"]["revision"] = "e" * 40
    config.write_text(yaml.safe_dump(plain))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    result = sdrpn("stage", "merge-labels", "--config", config, "--runtime", runtime)
    assert result.exit_code == 1
    assert "'llava-hf/llava-1.5-7b-hf' is not in the cache" in result.stderr
    assert f"--revision {'e' * 40}` with a network first" in result.stderr
    assert {w for file in server.files.values() for w in file.requests} == {"bytes=0-0"}


def test_long_reasons_stood_in_the_column_of_sizes(server: FileServer, tmp_path: Path):
    config = write_config(tmp_path, server)
    server.files["/images.zip"].behave = lambda number, wanted: Answer(status=503)
    result = sdrpn("run", "--dry-run", "--config", config, "--store", tmp_path / "store")
    rows = [line.split(BAR) for line in result.output.splitlines() if line.startswith(BAR)]
    (size,) = (row[3] for row in rows if "images.zip" in row[2])
    assert size.strip() == "unknown"


def test_dry_run_where_the_hub_cannot_be_reached(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    HfFileSystem.clear_instance_cache()
    path = write_config(tmp_path, server)
    config = yaml.safe_load(path.read_text())
    pattern = "hf://datasets/owner/name/data/*.parquet"
    config["sources"].append({"type": "parquet", "name": "table", "files": [pattern]})
    held_out = {"type": "scenes", "name": "held-out", "num_images": 4, "split": "train"}
    benchmark = {"type": "benchmark", "task": "textvqa_val"}
    config["evaluation"] = {"source": held_out, "benchmarks": [benchmark]}
    path.write_text(yaml.safe_dump(config))
    result = sdrpn("run", "--dry-run", "--config", path, "--store", tmp_path / "store")
    assert result.exit_code == 0, result.output
    assert result.output.count(": [Errno 111] Connection refused") == 2
    assert "the servers of 2 of 4 files do not answer" in result.output
    assert pattern in result.output
    assert "the weights of llava-hf/llava-1.5-7b-hf come on top" in result.output
    assert "first:" not in result.output
    HfFileSystem.clear_instance_cache()


def test_dry_run_where_the_hub_does_not_say_how_large_the_model_is(
    server: FileServer, tmp_path: Path
):
    config = write_config(tmp_path, server)
    server.json.clear()
    result = sdrpn("run", "--dry-run", "--config", config, "--store", tmp_path / "store")
    assert result.exit_code == 0, result.output
    assert "first: model llava-hf/llava-1.5-7b-hf: no such repository" in result.output
    line = "the weights of llava-hf/llava-1.5-7b-hf come on top"
    assert line in result.output


def test_dry_run_where_too_little_would_stay_free(server: FileServer, tmp_path: Path):
    config, runtime = write_config(tmp_path, server), tmp_path / "runtime.yaml"
    downloads = QUICK.model_dump() | {"free_gib": 1 << 20}
    runtime.write_text(yaml.safe_dump({"store": f"{tmp_path}/store", "downloads": downloads}))
    result = sdrpn("run", "--dry-run", "--config", config, "--runtime", runtime)
    assert result.exit_code == 0, result.output
    # The model's weights, and the RPN that is made of some of its layers.
    verdict = (
        "of which 1048576.0 GiB are to stay free (downloads.free_gib) - NOT ENOUGH for 6.6 GiB"
    )
    assert verdict in result.output


def test_dry_run_of_an_archive_that_is_not_on_this_disk(server: FileServer, tmp_path: Path):
    config = write_config(tmp_path, server)
    missing = f"{tmp_path}/images.zip"
    config.write_text(config.read_text().replace(server.url("/images.zip"), missing))
    result = sdrpn("run", "--dry-run", "--config", config, "--store", tmp_path / "store")
    assert result.exit_code == 1
    assert f"error: {missing}: no such file; check the source's URI" in result.stderr


def test_a_run_where_a_server_is_silent_stops_before_the_first_download(
    server: FileServer, tmp_path: Path
):
    config = write_config(tmp_path, server)
    server.files["/images.zip"].behave = lambda number, wanted: Answer(status=503)
    runtime = write_runtime(tmp_path)
    result = sdrpn("run", "--config", config, "--runtime", runtime)
    assert result.exit_code == 1
    assert "/images.zip: the server answers 503 Service Unavailable (3 attempts)" in result.stderr
    assert server.files["/mix.json"].requests == ["bytes=0-0"]


def plan_of(folder: Path, *options: object, **settings: object) -> str:
    """What a dry run prints of a few pictures on this disk."""
    Image.new("RGB", (8, 8)).save(folder / "1.png")
    talk = [{"from": who, "value": f"{n} ?"} for n in range(9) for who in ("human", "gpt")]
    records = [{"id": "1", "image": "1.png", "conversations": talk}]
    (folder / "small.json").write_text(json.dumps(records))
    source = {"type": "llava_mix", "name": "s", "records": f"{folder}/small.json"}
    config = {"name": "x", "sources": [source | {"images": str(folder)}], **settings}
    (folder / "small.yaml").write_text(yaml.safe_dump(config))
    store = ("--store", folder / "store")
    result = sdrpn("run", "--dry-run", "-c", folder / "small.yaml", *store, *options)
    assert result.exit_code == 0, result.output
    return result.output


def test_all_turns_of_records_on_this_disk_are_counted(server: FileServer, tmp_path: Path):
    printed = plan_of(tmp_path, records={"turns": "all"})
    rows = [line.split(BAR)[1:4] for line in printed.splitlines() if line.startswith(BAR)]
    questions = {stage.strip(): number.strip() for stage, _, number in rows}
    assert questions["extract-attention"] == "at most 9", "images are not looked at"
    assert questions["train-rpn"] == "at most 9", "not every label is accepted"


def test_the_plan_speaks_of_rewriting_only_where_there_is_some(server: FileServer, tmp_path: Path):
    """It named Visual-CoT's lines and 0.0 MiB in every plan."""
    assert "rewrite" not in plan_of(tmp_path)
    line = {"question": "q ?", "answer": "a", "image": "1.png", "dataset": "gqa", "bboxs": []}
    (tmp_path / "lines.jsonl").write_text(json.dumps(line))
    source = {"type": "visual_cot", "name": "cot", "records": f"{tmp_path}/lines.jsonl"}
    printed = plan_of(tmp_path, sources=[source | {"images": str(tmp_path)}])
    size = (tmp_path / "lines.jsonl").stat().st_size
    assert (
        f"to rewrite there, so that parts can be read: about {size} bytes of lines.jsonl" in printed
    )


def test_cost_is_said_in_the_currency_of_the_price(server: FileServer, tmp_path: Path):
    """A plan ended with "about 0 at 1 an hour"."""
    small = plan_of(tmp_path)
    assert "GPU time: less than 0.1 h for what is left" in small
    assert (
        "GPU cost: less than 0.01 at 1 an hour, in your currency (gpu_hour_price in the runtime "
        "settings)"
    ) in small
    runtime = tmp_path / "runtime.yaml"
    runtime.write_text(yaml.safe_dump({"gpu_hour_price": 2.5}))
    large = {"type": "scenes", "name": "s", "num_images": 100_000}
    settings = {"sources": [large], "model": {"profile": "llava-1.5-7b"}}
    printed = plan_of(tmp_path, "--runtime", runtime, **settings)
    assert "GPU time: about 18.9 h for what is left" in printed
    assert "GPU cost: about 47 at 2.5 an hour, in your currency" in printed


def test_the_plan_says_that_one_card_is_not_enough(server: FileServer, tmp_path: Path):
    """Its hours were said to be those of one card that cannot hold the model."""
    settings = {"model": {"profile": "llava-1.5-7b"}}
    assert "GPU memory" not in plan_of(tmp_path, **settings)
    (weights,) = server.json["/api/models/llava-hf/llava-1.5-7b-hf"]["siblings"]
    weights["size"] = 200 << 30
    told = "GPU memory: the weights take 200.0 GiB, more than one such card holds (48.0 GiB): "
    assert told in plan_of(tmp_path, **settings)


def test_the_plan_says_that_it_knows_nothing_of_a_cpu(server: FileServer, tmp_path: Path):
    runtime = tmp_path / "runtime.yaml"
    for device, is_said in (("cpu", True), ("cuda:7", False)):
        runtime.write_text(yaml.safe_dump({"device": device}))
        printed = plan_of(tmp_path, "--runtime", runtime)
        assert ("CPU time: not estimated" in printed) == is_said


def test_copied_images_of_folders_are_said_to_be_missing(server: FileServer, tmp_path: Path):
    assert "copy_images" not in plan_of(tmp_path)
    source = {"type": "llava_mix", "name": "s", "records": f"{tmp_path}/small.json"}
    printed = plan_of(tmp_path, sources=[source | {"images": str(tmp_path), "copy_images": True}])
    assert ", without the images of folders that are copied (copy_images)" in printed


def test_downloads_are_shown_once_and_only_while_there_are_any(server: FileServer, tmp_path: Path):
    Image.new("RGB", (8, 8)).save(tmp_path / "1.png")
    talk = [{"from": "human", "value": "what ?"}]
    records = [{"id": "1", "image": "1.png", "conversations": talk}]
    server.add("/small.json", json.dumps(records).encode())
    source = {"type": "llava_mix", "name": "s", "records": server.url("/small.json")}
    config = tmp_path / "small.yaml"
    config.write_text(
        yaml.safe_dump({"name": "x", "sources": [source | {"images": str(tmp_path)}]})
    )
    arguments = ("stage", "build-jsonl", "-c", config, "--runtime", write_runtime(tmp_path))
    first, second = sdrpn(*arguments), sdrpn(*arguments)
    assert first.exit_code == second.exit_code == 0, first.output + second.output
    assert first.stderr.count("Downloads") == first.stderr.count("/small.json") == 1
    assert "Downloads" not in second.stderr


def test_doctor_says_what_is_wrong_and_how_to_mend_it(server: FileServer, tmp_path: Path):
    report = tmp_path / "report.json"
    result = sdrpn("doctor", "--store", tmp_path / "store", "--json", report)
    assert result.exit_code == 0, result.output
    checks = {check["name"]: check for check in json.loads(report.read_text())}
    assert set(checks) == {"Python", "packages", "GPU", "memory", "disk", "store", "hub"}
    assert checks["store"]["state"] == "ok"
    assert checks["hub"]["state"] == "warning"  # the server has no such data set
    assert "HF_ENDPOINT" in checks["hub"]["remedy"]
    assert not any((tmp_path / "store").glob("*"))


@pytest.fixture
def unfitting_torchvision(tmp_path: Path) -> dict[str, str]:
    """Environment with one that was made for another torch: its operators are not there."""
    package = tmp_path / "packages" / "torchvision"
    described = tmp_path / "packages" / "torchvision-0.28.0.dist-info"
    for folder in (package, described):
        folder.mkdir(parents=True)
    (described / "METADATA").write_text("Metadata-Version: 2.1\nName: torchvision\nVersion: 0.28.0")
    (package / "__init__.py").write_text(
        "import torch\ntorch.library.register_fake('torchvision::nms')(lambda *given: None)\n"
    )
    root = Path(environment_checks.__file__).parents[1]
    paths = os.pathsep.join((str(package.parent), str(root)))
    return dict(os.environ, PYTHONPATH=paths, HF_HUB_OFFLINE="1", COLUMNS="220")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("doctor",), "error: packages: an installed package cannot be loaded: "),
        (("predict", "photo.png", "What?"), "error: an installed package cannot be loaded: "),
    ],
)
def test_a_torchvision_that_does_not_fit_torch_is_no_traceback(
    arguments: tuple[str, ...], said: str, unfitting_torchvision: dict[str, str], tmp_path: Path
):
    """transformers loads it wherever it is; `doctor` called such a machine ready."""
    Image.new("RGB", (8, 8)).save(tmp_path / "photo.png")
    ended = subprocess.run(
        [sys.executable, "-m", "flows", *arguments, "--store", str(tmp_path / "store")],
        env=unfitting_torchvision,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    lines = ended.stdout + ended.stderr
    assert ended.returncode == 1, lines
    assert f"{said}operator torchvision::nms does not exist; torchvision and torch" in lines
    assert "Traceback" not in lines


def test_doctor_asks_for_what_the_project_does(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """It had a list of its own, which was content with a torch that the project refuses."""
    real = environment_checks.version
    monkeypatch.setattr(
        environment_checks, "version", lambda name: "2.7.1" if name == "torch" else real(name)
    )
    result = sdrpn("doctor", "--store", tmp_path / "store")
    assert result.exit_code == 1
    assert "error: packages: pip install 'torch>=2.8'" in result.output
    assert "torch 2.7.1" in result.output


def test_doctor_where_the_hub_is_not_to_be_asked(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """It said that the hub did not answer, for another data set's sake."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    result = sdrpn("doctor", "--store", tmp_path / "store")
    assert "is not to be asked (offline mode)" in result.output
    assert "warning: hub: unset HF_HUB_OFFLINE" in result.output


def test_doctor_fails_where_no_run_can_work(server: FileServer, tmp_path: Path):
    (tmp_path / "file").write_text("in the way")
    result = sdrpn("doctor", "--store", tmp_path / "file" / "store")
    assert result.exit_code == 1
    assert "error: store:" in result.output
    assert "is not a folder" in result.output
