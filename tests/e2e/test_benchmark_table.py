"""``sdrpn stage evaluate`` with benchmarks and further thresholds: the table, and all documents."""

import json
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq
import pytest
import yaml
from typer.testing import CliRunner

from data_contracts.artifact import ArtifactRef
from data_contracts.enums import BenchmarkTask, Method
from data_contracts.label_settings import RegionChanges, RegionSettings
from data_contracts.sources import BenchmarkSource
from flows.cli import app
from tasks import recipes
from tasks.artifacts.store import ArtifactStore
from tests.benchmark_tables import write_table
from tests.pipelines import write_tiny_pipeline

pytestmark = pytest.mark.slow

TASK = BenchmarkTask.VSTAR
THRESHOLDS = (0.05, 0.95)
NUM_DOCUMENTS = 6
METHODS = (
    Method.BASE,
    Method.RAW_ATTENTION,
    Method.VICROP_GRAD,
    Method.SDRPN,
    Method.SDRPN_WITHDRAWN,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("table")
    config = write_tiny_pipeline(folder)
    assert config.evaluation is not None
    changes = {
        "benchmarks": (
            BenchmarkSource(task=TASK, files=str(write_table(folder / "hub", TASK, NUM_DOCUMENTS))),
        ),
        "methods": METHODS,
        "threshold_sweep": THRESHOLDS,
        "paper_model": "llava-1.5-7b",
    }
    evaluation = config.evaluation.model_copy(update=changes)
    # Without a gate: a random model's maps say little.
    regions = RegionChanges(**RegionSettings(max_box_area_ratio=None).model_dump())
    config = config.model_copy(update={"evaluation": evaluation, "regions": regions})
    (folder / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    (folder / "output.txt").write_text(evaluate(folder, "config.yaml", "summary.json"))
    return folder


def evaluate(folder: Path, config: str, summary_name: str) -> str:
    """What the command prints."""
    options = ("--config", folder / config, "--store", folder / "store")
    arguments = ["stage", "evaluate", *options, "--json", folder / summary_name]
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PREFECT_API_URL", raising=False)
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


def summary(folder: Path, name: str = "summary.json") -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / name).read_text())
    return found


def test_the_table_is_printed_and_written_in_every_format(folder: Path):
    printed, found = (folder / "output.txt").read_text(), summary(folder)
    assert "Side by side" in printed
    assert [Path(uri).name for uri in found["tables"]] == list(recipes.TABLE_FILES)
    assert all(f"table: {uri}" in printed for uri in found["tables"])
    data, markdown, page, latex = (Path(uri).read_text() for uri in found["tables"])
    assert json.loads(data) == found["comparison"]
    rows = found["comparison"]["rows"]
    assert [row["method"] for row in rows if row["benchmark"] == TASK.value] == list(METHODS)
    for row in rows:
        for text in (f"{row['published']:.1f}", f"{row['throughput']:.2f}x"):
            assert all(text in where for where in (printed, markdown, page, latex))
    base = next(r for r in rows if (r["benchmark"], r["method"]) == (TASK.value, "base"))
    figures = found["benchmarks"][TASK.value]["figures"]["base"]
    assert base["published"] == pytest.approx(100 * figures["published"]["vstar_overall_acc"])
    assert base["paper"] == 50.3


def test_regions_and_attention_are_judged_against_the_true_boxes(folder: Path):
    """The held-out questions of this pipeline have true boxes."""
    printed, found = (folder / "output.txt").read_text(), summary(folder)
    assert "Regions against true boxes" in printed
    assert "Raw attention against true boxes" in printed
    assert set(found["roi"]["methods"]) == {method.value for method in METHODS} - {"base"}
    for roi in found["roi"]["methods"].values():
        assert f"{roi['mean_iou']:.3f}" in printed
    assert {point["threshold"] for point in found["purity"]} >= {0.1, 0.2}
    above = [point["num_above"] for point in found["purity"]]
    assert above == sorted(above, reverse=True)
    changed = found["changed"]["sdrpn"]
    assert len(changed["lost"]) == changed["num_lost"]
    net = (changed["num_gained"] - changed["num_lost"]) / found["num_documents"]
    assert net == pytest.approx(found["gain"]["sdrpn"]), "this rule scores 0 or 1"


def test_every_threshold_was_answered_with_and_changes_the_crops(folder: Path):
    sweep = [p for p in summary(folder)["comparison"]["sweep"] if p["benchmark"] == TASK.value]
    assert [point["threshold"] for point in sweep] == list(THRESHOLDS)
    assert sweep[0]["crop_ratio"] != sweep[1]["crop_ratio"]
    assert "Region thresholds, in per cent" in (folder / "output.txt").read_text()


def test_documents_with_times_and_the_full_configuration(folder: Path):
    found = summary(folder)["artifacts"]["evaluate"]
    store = ArtifactStore(str(folder / "store"))
    results = ArtifactRef.parse(found[f"{TASK.value} results"])
    uri = store.file_uri(results, "documents.parquet")
    table = pl.read_parquet(uri)
    predictions = store.read_frame(ArtifactRef.parse(found[TASK.value]))
    assert table.height == predictions.height == NUM_DOCUMENTS * len(METHODS)
    kept = ["method", "question_id", "prediction", "score", "boxes"]
    assert table.sort(kept[:2]).select(kept).equals(predictions.sort(kept[:2]).select(kept))
    assert table["seconds"].min() > 0
    measured = summary(folder)["benchmarks"][TASK.value]["seconds_per_document"]
    for method, seconds in measured.items():
        own = table.filter(pl.col("method") == method)["seconds"]
        assert own.median() == pytest.approx(seconds)
    metadata = pq.read_schema(uri).metadata
    configuration = json.loads(metadata[b"sdrpn.configuration"])
    assert configuration["max_new_tokens"] == 16
    assert configuration["model"]
    assert metadata[b"sdrpn.predictions"].decode() == found[TASK.value]
    assert len(json.loads(metadata[b"sdrpn.inputs"])) == 3


def test_crops_of_fewer_tokens_are_answered_with_anew(folder: Path):
    """The options that make a zoom cheaper could be answered with, and not be evaluated."""
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["evaluation"] |= {"crop_tokens": 1, "threshold_sweep": []}
    (folder / "cheap.yaml").write_text(yaml.safe_dump(config))
    evaluate(folder, "cheap.yaml", "cheap.json")
    store = ArtifactStore(str(folder / "store"))
    whole, cheap = (
        store.read_frame(
            ArtifactRef.parse(summary(folder, name)["artifacts"]["evaluate"]["held_out"])
        )
        for name in ("summary.json", "cheap.json")
    )
    key = ["method", "question_id", "boxes"]
    assert whole.select(key).equals(cheap.select(key))
    changed = whole.filter(whole["prediction"] != cheap["prediction"])["method"].unique().to_list()
    assert {Method.SDRPN, Method.SDRPN_WITHDRAWN} & set(changed)
    assert Method.BASE not in changed
    tokens, boxes = cheap["num_crop_tokens"], cheap["boxes"].list.len()
    assert (tokens == boxes).all(), "one token per crop"
    assert whole["num_crop_tokens"].max() > 1
