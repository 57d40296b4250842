"""The history of promotions: what counts as an entry, and how entries are numbered."""

import pytest

from data_contracts.label_drift import LabelCounts, LabelDrift, PromotionLimits
from tasks.artifacts.store import ArtifactStore
from tasks.promote_labels import promote, promotions
from tasks.storage.errors import StoreError


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
