"""The history of promotions: what counts as an entry, and how entries are numbered."""

from collections import Counter

import polars as pl
import pytest

from benchmarks.generated_labels import label_rows
from data_contracts.artifact import ArtifactRef, Recipe
from data_contracts.enums import Stage
from data_contracts.label_drift import LabelCounts, LabelDrift, PromotionLimits
from data_contracts.registry import SchemaId
from tasks import promote_labels
from tasks.artifacts.stage import FrameShard, run_stage
from tasks.artifacts.store import ArtifactStore
from tasks.promote_labels import measure_drift, promote, promotions
from tasks.storage.errors import StoreError
from tests.artifacts import shard_reads, stage_run


def counts(letter: str, num_labelled: int = 1) -> LabelCounts:
    return LabelCounts(
        label_set=f"merge-labels/{letter * 20}",
        num_questions=num_labelled,
        num_labelled=num_labelled,
        foreground_ratio=0.1,
    )


def promote_set(store: ArtifactStore, letter: str) -> str:
    drift = LabelDrift(new=counts(letter), previous=None)
    return promote(store, "mine", drift, PromotionLimits(), force=True).label_set


@pytest.mark.parametrize("is_whole", [False, True])
def test_what_a_killed_write_leaves_is_no_promotion(file_store: ArtifactStore, is_whole: bool):
    promote_set(file_store, "a")
    entry = file_store.storage.read("promotions/mine/00000000.json")
    left = entry if is_whole else entry[:20]
    file_store.storage.put("promotions/mine/.00000001.json.1f2e3d.partial", left)
    file_store.storage.put("promotions/mine/notes.json", left)
    assert [one.label_set[-1] for one in promotions(file_store, "mine")] == ["a"]
    assert promote_set(file_store, "b")[-1] == "b"


def test_promotion_goes_on_after_a_damaged_entry_was_deleted(file_store: ArtifactStore):
    for letter in "abc":
        promote_set(file_store, letter)
    damaged = "promotions/mine/00000001.json"
    file_store.storage.put(damaged, b"{")
    with pytest.raises(StoreError, match=r"00000001.json: is not a promotion .*delete it"):
        promote_set(file_store, "d")
    file_store.storage.delete([damaged])
    promote_set(file_store, "d")
    assert [one.label_set[-1] for one in promotions(file_store, "mine")] == ["a", "c", "d"]


def test_a_comparison_with_what_does_not_stand_any_more_promotes_nothing(
    file_store: ArtifactStore,
):
    """The slower of two nights took the place of the faster one, however much it differed."""
    promote_set(file_store, "a")
    few = LabelDrift(new=counts("c"), previous=counts("a"), num_compared=1)
    many = LabelDrift(new=counts("b", 1000), previous=counts("a"), num_compared=1)
    limits = PromotionLimits()
    assert not limits.breaches(few)
    assert promote(file_store, "mine", many, limits).label_set[-1] == "b"
    told = r"promotions/mine: another run promoted merge-labels/b+ meanwhile; run again"
    with pytest.raises(StoreError, match=told):
        promote(file_store, "mine", few, limits)
    unseen = LabelDrift(new=counts("c"), previous=None)
    with pytest.raises(StoreError, match=told):
        promote(file_store, "mine", unseen, limits)
    assert [one.label_set[-1] for one in promotions(file_store, "mine")] == ["a", "b"]


def label_set(store: ArtifactStore, *datasets: pl.DataFrame) -> ArtifactRef:
    """A merged label set with a shard for each of these."""
    recipe = Recipe(
        stage=Stage.MERGE_LABELS,
        stage_version=0,
        schema_id=SchemaId.LABEL_SET,
        config={"rows": [rows.height for rows in datasets]},
        num_shards=len(datasets),
    )
    source = pl.lit(f"make-labels/{'0' * 20}")
    return run_stage(
        stage_run(store),
        recipe,
        lambda index: FrameShard(datasets[index].with_columns(label_artifact=source)),
    )


def test_label_sets_are_compared_a_share_of_the_questions_at_a_time(
    memory_store: ArtifactStore, reads: Counter[str], monkeypatch: pytest.MonkeyPatch
):
    """A data set was held whole, twice, and each was read twice."""
    at_once: list[int] = []
    compare = promote_labels._compare

    def watch(one: pl.DataFrame, other: pl.DataFrame) -> object:
        at_once.append(one.height + other.height)
        return compare(one, other)

    monkeypatch.setattr(promote_labels, "_compare", watch)
    monkeypatch.setattr(promote_labels, "_QUESTIONS_AT_ONCE", 10)
    rows = label_rows(0, 60, grid=4)
    failed = rows.tail(1).with_columns(
        status=pl.lit("weak_attention"),
        labels=pl.Series([[-100] * 16]),
        num_foreground=pl.lit(0),
        num_background=pl.lit(0),
        num_ignore=pl.lit(16),
    )
    vg = label_rows(100, 120, grid=4).with_columns(dataset=pl.lit("vg"))
    # What is called alike in another data set is another question.
    before = label_set(memory_store, rows.tail(51), vg.with_columns(dataset=pl.lit("coco")))
    now = label_set(memory_store, pl.concat([rows.head(59), failed], how="vertical_relaxed"), vg)
    for one in (before, now):
        assert shard_reads(memory_store, one, reads) == [0, 0]
    drift = measure_drift(memory_store, before, now)
    for one in (before, now):
        assert shard_reads(memory_store, one, reads) == [1, 1]
    assert (drift.num_compared, drift.box_overlap, drift.cell_agreement) == (50, 1.0, 1.0)
    assert sum(at_once) == 51 + 20 + 59 + 20
    assert max(at_once) < 50
