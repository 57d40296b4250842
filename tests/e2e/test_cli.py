"""The command line on a tiny model: a whole run, a second one, one stage, and every way to err."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect.settings import PREFECT_API_URL, temporary_settings
from typer.testing import Result

from data_contracts.artifact import ArtifactRef
from data_contracts.enums import DEFAULT_METHODS, Stage
from data_contracts.registry import SchemaId
from data_contracts.runtime import RuntimeConfig
from tasks.artifacts.admin import list_artifacts
from tasks.artifacts.store import ArtifactStore
from tests.architecture.source_tree import CHECKOUT
from tests.e2e.command_line import FirstRun, first_run, sdrpn
from tests.mixes import mix_record, write_image
from tests.pipelines import write_tiny_pipeline

pytestmark = [pytest.mark.timeout(1200), pytest.mark.usefixtures("no_server")]

STAGES = tuple(stage for stage in Stage if stage is not Stage.CALIBRATE)
"""The tiny model's profile is calibrated."""
UP_TO_TRAINING = STAGES[: STAGES.index(Stage.TRAIN_RPN) + 1]


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> FirstRun:
    folder = tmp_path_factory.mktemp("first")
    return first_run(folder, write_tiny_pipeline(folder))


def contents(store: ArtifactStore) -> dict[str, int]:
    """Every object of a store and when it was written."""
    files = [path for path in Path(store.root).rglob("*") if path.is_file()]
    return {str(path): path.stat().st_mtime_ns for path in files}


def digests(store: ArtifactStore, stages: tuple[Stage, ...]) -> dict[ArtifactRef, list[str]]:
    """Digest of every shard of the committed artifacts of some stages."""
    refs = [item.ref for stage in stages for item in list_artifacts(store, stage)]
    return {ref: [shard.sha256 for shard in store.manifest(ref).shards] for ref in refs}


def test_the_version_is_the_one_that_artifacts_are_made_by(first: FirstRun):
    ref = next(item.ref for item in list_artifacts(first.store, Stage.REPORT))
    told = sdrpn("--version")
    assert told.exit_code == 0
    assert told.stdout == f"sdrpn {first.store.manifest(ref).provenance.code_version}\n"


def test_run_ends_with_a_results_table_and_a_report(first: FirstRun):
    assert first.result.exit_code == 0, first.result.output
    for method in DEFAULT_METHODS:
        assert method.value in first.result.stdout
    report = Path(first.summary["report"])
    assert f"report: {report}" in first.result.stdout
    assert report.read_text(encoding="utf-8").lstrip().lower().startswith("<!doctype html>")
    assert {item.ref.stage for item in list_artifacts(first.store)} == set(STAGES)
    assert all(item.is_committed for item in list_artifacts(first.store))


def test_the_report_warns_of_few_labels_too(first: FirstRun):
    """Whoever was handed the page did not learn that its RPN was trained on next to nothing."""
    page = Path(first.summary["report"]).read_text(encoding="utf-8")
    assert re.search(r"only \d+ labels to train on .*; add questions", page)


def test_report_is_copied_where_it_is_asked_for(first: FirstRun, tmp_path: Path):
    copied = sdrpn("report", *first.options, "--output", tmp_path / "out" / "page.html")
    assert copied.exit_code == 0, copied.output
    assert (tmp_path / "out/page.html").read_bytes() == Path(first.summary["report"]).read_bytes()


def test_summary_has_the_published_keys(first: FirstRun):
    summary = first.summary
    assert set(summary["accuracy"]) == {method.value for method in DEFAULT_METHODS}
    assert all(0 <= value <= 1 for value in summary["accuracy"].values())
    assert set(summary["throughput"]) == set(summary["accuracy"])
    assert {"precision", "recall"} <= set(summary["labels"])
    assert 0 <= summary["roi"]["box_recall"] <= 1
    assert set(summary["artifacts"]) == {stage.value for stage in STAGES}
    assert set(summary["seconds"]) == {*summary["artifacts"], "total"}
    assert summary["reused"] is False
    for by_label in summary["artifacts"].values():
        for text in by_label.values():
            assert first.store.is_committed(ArtifactRef.parse(text))


def test_second_run_computes_nothing(first: FirstRun, tmp_path: Path):
    before = contents(first.store)
    again = sdrpn("run", *first.options, "--json", tmp_path / "again.json")
    assert again.exit_code == 0, again.output
    assert "reused, nothing computed" in again.stdout
    assert contents(first.store) == before
    summary = json.loads((tmp_path / "again.json").read_text())
    assert summary["reused"] is True
    assert {k: summary[k] for k in ("accuracy", "labels", "artifacts", "report")} == {
        k: first.summary[k] for k in ("accuracy", "labels", "artifacts", "report")
    }


def test_forced_stage_is_made_anew_with_the_same_bytes(first: FirstRun):
    before, known = contents(first.store), digests(first.store, UP_TO_TRAINING)
    forced = sdrpn("stage", "make-labels", *first.options, "--force")
    assert forced.exit_code == 0, forced.output
    changed = {path for path, when in contents(first.store).items() if before.get(path) != when}
    assert changed
    assert all("/make-labels/" in path for path in changed)
    assert digests(first.store, UP_TO_TRAINING) == known


def test_own_pictures_give_labels_and_an_rpn_without_a_benchmark(first: FirstRun, tmp_path: Path):
    source = first.config.sources[0]
    given = ("--data", source.records, "--images", source.images)
    own = sdrpn("run", *first.options, *given, "--json", tmp_path / "own.json")
    assert own.exit_code == 0, own.output
    summary = json.loads((tmp_path / "own.json").read_text())
    assert "accuracy" not in summary
    # Every page of own data had the name of the configuration.
    title = Path(str(source.records)).stem
    assert f"<h1>{title}</h1>" in Path(summary["report"]).read_text()
    assert set(summary["artifacts"]) == {s.value for s in STAGES} - {"evaluate"}
    assert Path(summary["report"]).is_file()
    evaluated = sdrpn("stage", "evaluate", *first.options, *given)
    # It said that the configuration had no 'evaluation', which it has.
    assert_one_line(evaluated, "--data takes the place of the configuration's sources", 2)


def test_a_config_without_sources_serves_own_pictures(first: FirstRun, tmp_path: Path):
    """It was refused for want of sources, which --data takes the place of."""
    path = changed_config(first, tmp_path, sources=None)
    source = first.config.sources[0]
    given = ("--data", source.records, "--images", source.images)
    made = sdrpn("stage", "build-jsonl", "-c", path, "--store", tmp_path / "store", *given)
    assert made.exit_code == 0, made.output


@pytest.mark.slow
def test_killed_run_goes_on_where_it_stopped_and_ends_with_the_same_bytes(
    first: FirstRun, tmp_path: Path
):
    """Also with worker processes in place of one: who makes a shard does not matter."""
    store = ArtifactStore(str(tmp_path / "store"))
    options = (*first.options[:3], store.root)
    command = [sys.executable, "-m", "flows", "stage", "train-rpn", *options]
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    receipts = Path(store.root) / "extract-attention"
    while not list(receipts.glob("*/receipts/*.json")):
        assert process.poll() is None, "the run ended before its first shard was there"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = contents(store)
    assert not list(receipts.glob("*/manifest.json"))

    resumed = sdrpn("stage", "train-rpn", *options, "--workers", "2")
    assert resumed.exit_code == 0, resumed.output
    after = contents(store)
    assert {path for path in kept if after.get(path) != kept[path]} == set()
    made, known = digests(store, UP_TO_TRAINING), digests(first.store, UP_TO_TRAINING)
    assert {ref.stage for ref in made} == set(UP_TO_TRAINING)
    assert made == {ref: known[ref] for ref in made}


def test_artifacts_are_listed_shown_and_tidied(first: FirstRun):
    store = ("--store", first.store.root)
    listed = sdrpn("artifacts", "ls", *store)
    assert listed.exit_code == 0, listed.output
    labels = first.summary["artifacts"]["merge-labels"]["all"]
    assert labels in listed.stdout
    files = [path for path in Path(first.store.root).rglob("*") if path.is_file()]
    assert f"together: {sum(path.stat().st_size for path in files):,} bytes" in listed.stdout
    shown = json.loads(sdrpn("artifacts", "show", labels, *store).stdout)
    assert shown["is_committed"] is True
    assert shown["recipe"]["stage"] == "merge-labels"
    before = contents(first.store)
    tidied = sdrpn("artifacts", "gc", *store)
    assert "nothing to delete" in tidied.stdout
    # Checkpoints of the training, which is just over.
    assert re.search(
        r"within 7 days: .* left over of train-rpn/.* --older-than-days 0", tidied.stderr
    )
    soon = sdrpn("artifacts", "gc", "--older-than-days", "0", *store)
    assert "checkpoints and partial files: it is finished and stays" in soon.stdout
    assert "nothing was deleted; the same command with --delete frees" in soon.stdout
    assert "left alone" not in soon.stderr
    assert contents(first.store) == before


def test_rejected_rows_are_shown_with_their_reasons(first: FirstRun):
    """A warning said that each is a row with its reason, and no command showed one."""
    store = ("--store", first.store.root)
    made = first.summary["artifacts"]
    shown = sdrpn("artifacts", "show", made["build-jsonl"]["small"], "--rejected", *store)
    rows = [json.loads(line) for line in shown.stdout.splitlines()]
    assert {row["source_id"]: row["status"] for row in rows} == {
        "text": "text_only",
        "gone": "missing_image",
        "escape": "malformed",
        "0": "duplicate",
    }
    assert {row["reason"] for row in rows} >= {"the record has no image"}
    labels = sdrpn("artifacts", "show", made["make-labels"]["small"], "--rejected", *store)
    assert labels.exit_code == 0, labels.output
    files = sdrpn("artifacts", "show", made["download"]["small"], "--rejected", *store)
    assert_one_line(files, "has no rows with a status; build-jsonl, extract-attention,", 2)


def changed_config(first: FirstRun, folder: Path, **changes: Any) -> Path:
    data = first.config.model_dump(mode="json") | changes
    path = folder / "changed.yaml"
    path.write_text(yaml.safe_dump({name: v for name, v in data.items() if v is not None}))
    return path


def assert_one_line(result: Result, message: str, status: int) -> None:
    assert result.exit_code == status, result.output
    progress = re.compile(r": (done|\d+ of \d+ \w+ after .* min( left)?)$")
    (line,) = [line for line in result.stderr.splitlines() if not progress.search(line)]
    assert line.startswith("error: ")
    assert message in line
    assert "Traceback" not in result.output


def test_missing_key(first: FirstRun, tmp_path: Path):
    path = changed_config(first, tmp_path, sources=None)
    wanted = "changed.yaml: key 'sources' is missing: add it, or give --data and --images"
    assert_one_line(sdrpn("run", "-c", path), wanted, 2)


def test_unknown_key(first: FirstRun, tmp_path: Path):
    path = changed_config(first, tmp_path, trainnig={})
    assert_one_line(sdrpn("run", "-c", path), "key 'trainnig' is not known: remove it", 2)


def test_records_that_are_not_there(first: FirstRun, tmp_path: Path):
    result = sdrpn("run", *first.options, "--data", tmp_path / "no.json", "--images", tmp_path)
    assert_one_line(result, "no.json: no such file; check the source's URI", 1)


def test_data_without_images(first: FirstRun, tmp_path: Path):
    result = sdrpn("run", *first.options, "--data", tmp_path / "mix.json")
    assert_one_line(result, "--data and --images belong together: give both", 2)


def test_store_that_cannot_be_written(first: FirstRun, tmp_path: Path):
    (tmp_path / "file").write_text("in the way")
    result = sdrpn("run", *first.options[:2], "--store", tmp_path / "file" / "store")
    assert_one_line(result, "file/store: is not a folder", 1)


@pytest.mark.parametrize(
    "command", [("run", "--json"), ("stage", "train-rpn", "--json"), ("report", "--output")]
)
@pytest.mark.parametrize("where", ["file/out.json", "."])
def test_unwritable_output_is_found_before_anything_runs(
    first: FirstRun, tmp_path: Path, command: tuple[str, ...], where: str
):
    """The path was looked at only once the run, of hours maybe, was over."""
    (tmp_path / "file").write_text("in the way")
    store = tmp_path / "store"
    *name, option = command
    result = sdrpn(*name, *first.options[:2], "--store", store, option, tmp_path / where)
    assert_one_line(result, f"{option} {tmp_path / where}: ", 2)
    assert not store.exists()


def test_memory_store_is_refused_for_several_workers(first: FirstRun):
    """Every worker made its shards in a store of its own, and none was found afterwards."""
    result = sdrpn("run", *first.options[:2], "--store", "memory://mine", "--workers", "2")
    assert_one_line(result, "store memory://mine lives in the memory of one process", 2)


def test_every_stage_is_done_once(first: FirstRun):
    """`train-rpn: done` came twice: after the last step, and after the last file."""
    done = [line for line in first.result.stderr.splitlines() if line.endswith(": done")]
    assert "train-rpn: done" in done
    assert len(done) == len(set(done))


def test_store_of_an_unknown_kind(first: FirstRun):
    result = sdrpn("run", *first.options[:2], "--store", "nosuch://bucket")
    assert_one_line(result, "nosuch://bucket", 2)


def test_absent_weights(first: FirstRun, tmp_path: Path):
    profile = yaml.safe_load(Path(first.config.model.profile).read_text())
    profile["model_id"] = str(tmp_path / "nowhere")
    (tmp_path / "profile.yaml").write_text(yaml.safe_dump(profile))
    path = changed_config(first, tmp_path, model={"profile": f"{tmp_path}/profile.yaml"})
    result = sdrpn("run", "-c", path, "--store", tmp_path / "store")
    assert_one_line(result, f"model '{tmp_path}/nowhere' is neither a directory nor a hub id", 1)


def test_a_model_that_its_profile_is_not_for(first: FirstRun, tmp_path: Path):
    """A plan refused it; a run fetched its data first, and refused it when it came to load it."""
    profile = yaml.safe_load(Path(first.config.model.profile).read_text())
    profile["num_layers"] += 2
    (tmp_path / "profile.yaml").write_text(yaml.safe_dump(profile))
    path = changed_config(first, tmp_path, model={"profile": f"{tmp_path}/profile.yaml"})
    for dry in ((), ("--dry-run",)):
        result = sdrpn("run", "-c", path, "--store", tmp_path / "store", *dry)
        assert_one_line(result, "is for 8 layers x 4 heads, the model has 6 x 4: choose its own", 1)
    assert not list((tmp_path / "store").glob("*/*"))


def test_unknown_profile(first: FirstRun, tmp_path: Path):
    path = changed_config(first, tmp_path, model={"profile": "llava-9"})
    result = sdrpn("run", "-c", path, "--store", tmp_path / "store")
    assert_one_line(result, "model.profile: no profile 'llava-9'; packaged are", 2)


def test_no_usable_sample(first: FirstRun, tmp_path: Path):
    write_image(tmp_path / "a.png")
    records = [mix_record("t", None), mix_record("m", "a.png", "<image>")]
    (tmp_path / "mix.json").write_text(json.dumps(records))
    given = ("--data", tmp_path / "mix.json", "--images", tmp_path)
    result = sdrpn("run", *first.options[:2], "--store", tmp_path / "store", *given)
    assert_one_line(result, "not one of its records can be asked", 1)


def test_unreadable_images(first: FirstRun, tmp_path: Path):
    (tmp_path / "a.png").write_bytes(b"not a picture")
    (tmp_path / "mix.json").write_text(json.dumps([mix_record("m", "a.png")]))
    given = ("--data", tmp_path / "mix.json", "--images", tmp_path)
    result = sdrpn("run", *first.options[:2], "--store", tmp_path / "store", *given)
    assert_one_line(result, "can be asked (of all rows: 1 unreadable_image); the first: image ", 1)


def test_debug_shows_where_an_error_comes_from(tmp_path: Path):
    result = sdrpn("--debug", "run", "-c", tmp_path / "no.yaml")
    assert result.exit_code == 1
    assert "no.yaml: no such file" in str(result.exception)


def test_the_operating_page_names_the_rows_of_every_stage(first: FirstRun):
    page = (CHECKOUT / "docs" / "operating.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([a-z-]+)` \| [^|]+ \| ([^|]+) \|$", page, re.MULTILINE)
    told = {Stage(stage): set(re.findall(r"`(\w+\.v\d+)`", schemas)) for stage, schemas in rows}
    made: dict[Stage, set[str]] = {stage: set() for stage in Stage}
    for item in list_artifacts(first.store):
        made[item.ref.stage].add(first.store.manifest(item.ref).recipe.schema_id)
    assert told == {stage: schemas - {SchemaId.FILES} for stage, schemas in made.items()}


def test_help_names_every_command():
    text = sdrpn("--help").stdout
    assert text.index("Run the whole pipeline") < text.index("Take the RPN out of")
    assert all(name in text for name in ("run", "stage", "artifacts", "scenes"))
    wrong = sdrpn("stage", "evalute")
    assert wrong.exit_code == 2
    assert "evaluate" in wrong.stderr


@pytest.mark.parametrize("command", ["run", "predict"])
def test_help_breaks_a_line_only_where_the_next_word_does_not_fit(command: str):
    """Line breaks of the sources were shown, and the terminal's beside them."""
    prose = sdrpn(command, "--help").stdout.split("\u256d")[0].splitlines()[3:]
    assert sum(bool(line.strip()) for line in prose) >= 3, prose
    for line, following in pairwise(prose):
        if line.strip() and following.strip():
            assert len(line.rstrip()) + len(following.split()[0]) >= len(line) - 2, following


def test_scenes_go_into_a_folder_of_their_own(tmp_path: Path):
    """Images of an earlier call stayed beside the new ones."""
    written = sdrpn("scenes", tmp_path / "demo", "--num-images", 2)
    assert written.exit_code == 0, written.output
    before = {path: path.read_bytes() for path in (tmp_path / "demo").rglob("*") if path.is_file()}
    again = sdrpn("scenes", tmp_path / "demo", "--num-images", 1, "--seed", 1)
    assert_one_line(again, f"FOLDER {tmp_path}/demo: is not empty; name a new folder", 2)
    after = {path: path.read_bytes() for path in (tmp_path / "demo").rglob("*") if path.is_file()}
    assert after == before
    (tmp_path / "empty").mkdir()
    assert sdrpn("scenes", tmp_path / "empty", "--num-images", 1).exit_code == 0


def test_scenes_without_photographs_leave_no_half_written_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Not every scene has a photograph: some were written before one was missing."""
    monkeypatch.setitem(sys.modules, "skimage", None)
    refused = sdrpn("scenes", tmp_path / "demo", "--num-images", 16)
    assert refused.exit_code == 1
    assert refused.stderr == "error: scenes need scikit-image: pip install 'sdrpn[scenes]'\n"
    monkeypatch.undo()
    assert sdrpn("scenes", tmp_path / "demo", "--num-images", 1).exit_code == 0


def test_a_prefect_server_that_is_down_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """142 lines of a traceback ended with the address."""
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}):
        result = sdrpn("report", "--store", tmp_path / "store")
    assert result.exit_code == 2
    assert "error: no Prefect server answers at http://127.0.0.1:9/api" in result.stderr
    assert not (tmp_path / "store").exists()


def test_a_summary_of_a_run_that_is_none_is_refused(tmp_path: Path):
    """--json was ignored."""
    result = sdrpn("run", "--dry-run", "--store", tmp_path, "--json", tmp_path / "summary.json")
    assert result.exit_code == 2
    assert "--dry-run makes none" in result.stderr


def test_calibration_replaces_nobodys_files(tmp_path: Path):
    """It wrote its calibration.md over the one of a documentation, after minutes of work."""
    (tmp_path / "calibration.md").write_text("mine")
    result = sdrpn("calibrate", "--model", "reference", "--out", tmp_path)
    assert result.exit_code == 2
    assert f"--out {tmp_path}: is not empty" in result.stderr
    assert (tmp_path / "calibration.md").read_text() == "mine"


def test_a_run_under_prefect_records_a_store_that_is_the_same_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A stage that its deployment ran again opened an empty store in the checkout."""
    recorded: list[RuntimeConfig] = []

    def record(*, runtime: RuntimeConfig, **_: object) -> None:
        recorded.append(runtime)
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    monkeypatch.setattr("flows.prefect_server.require_server", lambda: None)
    monkeypatch.setattr("flows.pipeline_flow.sdrpn", record)
    for store in ("mine", "s3://bucket/mine"):
        assert sdrpn("run", "--store", store).exit_code == 130
    assert [runtime.store for runtime in recorded] == [f"{tmp_path}/mine", "s3://bucket/mine"]
