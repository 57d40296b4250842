"""Importing label pickles: attention that labels are made from, and a record of every reject."""

from pathlib import Path

import numpy as np
import pytest

from data_contracts.interop import PublishedLabels
from data_contracts.label_settings import LabelSettings
from data_contracts.runtime import RuntimeConfig
from sdrpn_core.pseudo_labels import make_pseudo_labels
from tasks.artifacts.stage import StageRun
from tasks.artifacts.store import ArtifactStore
from tasks.import_labels import ImportFailed, import_labels, import_summary
from tasks.make_labels import make_labels
from tasks.merge_labels import merge_labels
from tests.mixes import write_image
from tests.published import Row, llava_row, qwen_row, write_pickle, write_row_images


def run_on(store: ArtifactStore, **options: bool) -> StageRun:
    return StageRun(store, RuntimeConfig(store=store.root), **options)


def published(folder: Path, *files: list[Row], rows_per_shard: int = 3) -> PublishedLabels:
    paths = [write_pickle(folder / f"part{i}.pkl", rows) for i, rows in enumerate(files)]
    everything = [row for rows in files for row in rows if isinstance(row, dict)]
    images = write_row_images(folder / "images", everything)
    return PublishedLabels(
        files=tuple(map(str, paths)), images=str(images), rows_per_shard=rows_per_shard
    )


def test_maps_become_attention_unchanged(store: ArtifactStore, tmp_path: Path) -> None:
    rows = [llava_row(number) for number in range(5)]
    ref = import_labels(run_on(store), published(tmp_path, rows))
    frame = store.read_frame(ref)
    assert len(store.manifest(ref).shards) == 2
    by_question = {row["question"]: row for row in frame.to_dicts()}
    for number, row in enumerate(rows):
        made = by_question[row["prompt"]]
        np.testing.assert_array_equal(
            np.float32(made["grounding"]), row["grounding_attn_o2i"].astype(np.float32)
        )
        np.testing.assert_array_equal(np.float32(made["sink"]), row["sink_attn"].astype(np.float32))
        assert (made["dataset"], made["kind"]) == (
            ("gqa", "natural") if number % 2 == 0 else ("ocr_vqa", "textual")
        )
        assert made["image_uri"] == f"{tmp_path}/images/{row['image']}"
        assert made["pad_top"] == 8
    assert import_summary(store, ref).num_rejected == 0


@pytest.mark.parametrize("preset", ["reference-llava", "reference-qwen", "default"])
def test_labels_go_on_from_them(preset: str, file_store: ArtifactStore, tmp_path: Path) -> None:
    rows = [qwen_row(number, natural=number % 2 == 0) for number in range(6)]
    settings = LabelSettings.preset(preset)
    run = run_on(file_store)
    labels = make_labels(run, import_labels(run, published(tmp_path, rows)), settings)
    made = {row["question"]: row for row in file_store.read_frame(labels).to_dicts()}
    expected = make_pseudo_labels(
        np.stack([row["grounding_attn_o2i"] for row in rows]).astype(np.float32),
        np.stack([row["sink_attn"] for row in rows]).astype(np.float32),
        settings,
        np.array([[48, 32]] * len(rows)),
    )
    for index, row in enumerate(rows):
        found = np.reshape(made[row["prompt"]]["labels"], (24, 24))
        np.testing.assert_array_equal(found, expected.labels[index])
    assert any(row["status"] == "ok" for row in made.values())
    assert file_store.read_frame(merge_labels(run, [labels])).height == len(rows)


def test_bad_rows_are_kept_with_their_reasons(file_store: ArtifactStore, tmp_path: Path) -> None:
    good = [llava_row(number) for number in range(4)]
    bad = [
        llava_row(10) | {"grounding_attn_o2i": np.full(576, np.nan)},
        llava_row(11) | {"image": "gqa/images/gone.png"},
        llava_row(12) | {"image": "gqa/images/damaged.png"},
        "not a row",
    ]
    settings = published(tmp_path, [*good, *bad], [llava_row(0)])
    (tmp_path / "images/gqa/images/gone.png").unlink()
    (tmp_path / "images/gqa/images/damaged.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    run = run_on(file_store)
    ref = import_labels(run, settings)
    summary = import_summary(file_store, ref)
    assert (summary.num_imported, summary.num_rejected) == (4, 5)
    rejects = file_store.read_frame(summary.rejects).sort("file", "row").to_dicts()
    assert [(row["file"], row["row"], row["source_id"]) for row in rejects] == [
        ("part0.pkl", 4, "1010"),
        ("part0.pkl", 5, "1011"),
        ("part0.pkl", 6, "1012"),
        ("part0.pkl", 7, ""),
        ("part1.pkl", 0, "1000"),
    ]
    reasons = [row["reason"] for row in rejects]
    assert "not finite" in reasons[0]
    assert "no image 'gqa/images/gone.png'" in reasons[1]
    assert "damaged.png" in reasons[2]
    assert reasons[3] == "a str, not a dictionary"
    assert reasons[4] == "the same question as row 0 of part0.pkl"


def test_importing_again_reads_no_image_twice(file_store: ArtifactStore, tmp_path: Path) -> None:
    settings = published(tmp_path, [llava_row(number) for number in range(4)])
    seen: list[tuple[int, int]] = []
    run = StageRun(
        file_store,
        RuntimeConfig(store=file_store.root),
        on_progress=lambda _, num_done, num_shards: seen.append((num_done, num_shards)),
    )
    first = import_labels(run, settings)
    assert seen == [(0, 2), (1, 2), (2, 2)]
    before = file_store.manifest(first).shards
    seen.clear()
    assert import_labels(run, settings) == first
    assert seen == [(2, 2)]
    assert import_labels(run_on(file_store, force=True), settings) == first
    assert file_store.manifest(first).shards == before


def test_other_images_are_another_import(file_store: ArtifactStore, tmp_path: Path) -> None:
    settings = published(tmp_path, [llava_row(number) for number in range(3)])
    first = import_labels(run_on(file_store), settings)
    write_image(tmp_path / "images/gqa/images/0.png", 99, (64, 32))
    assert import_labels(run_on(file_store), settings) != first


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"question_id": 1}, "holds a dict, not a list of rows"),
        ([], "no rows"),
        ([3, 4], r"none of 2 rows can be used \(2 x: a int, not a dictionary\)"),
    ],
)
def test_a_file_of_something_else_is_explained(
    content: object, message: str, file_store: ArtifactStore, tmp_path: Path
) -> None:
    path = write_pickle(tmp_path / "labels.pkl", content)
    settings = PublishedLabels(files=(str(path),), images=str(tmp_path))
    with pytest.raises(ImportFailed, match=message):
        import_labels(run_on(file_store), settings)


def test_a_wrong_images_folder_is_explained(file_store: ArtifactStore, tmp_path: Path) -> None:
    settings = published(tmp_path, [llava_row(0)])
    with pytest.raises(ImportFailed, match=r"no image .*check the file and --images"):
        import_labels(
            run_on(file_store), settings.model_copy(update={"images": f"{tmp_path}/elsewhere"})
        )


def test_a_missing_file_and_two_of_one_name(file_store: ArtifactStore, tmp_path: Path) -> None:
    settings = published(tmp_path, [llava_row(0)])
    for files, message in (
        ((f"{tmp_path}/no.pkl",), "no such file"),
        ((f"{tmp_path}",), "is a folder"),
        (("/dev/null",), r"/dev/null: cannot be read \(.*not a file"),
        (settings.files * 2, "the same name"),
    ):
        with pytest.raises(ImportFailed, match=message):
            import_labels(run_on(file_store), settings.model_copy(update={"files": files}))
