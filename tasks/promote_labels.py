"""Promotion of label sets: the newest is compared with the last promoted one and takes its place
only within limits.

    {root}/promotions/{configuration}/00000007.json   create-only; the highest number counts

Label sets themselves are never touched: what is not promoted stays committed, to be looked at.
"""

import math
import re
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
from pydantic import ValidationError

from data_contracts.artifact import ArtifactRef, Manifest
from data_contracts.enums import LabelStatus
from data_contracts.errors import SdrpnError
from data_contracts.label_drift import LabelCounts, LabelDrift, Promotion, PromotionLimits
from data_contracts.registry import empty_frame
from sdrpn_core.label_drift import LabelAgreement, label_agreement
from tasks.artifacts.errors import ArtifactNotFound, CorruptArtifact
from tasks.artifacts.frame_buckets import FrameBuckets, without_enums
from tasks.artifacts.store import ArtifactStore
from tasks.shard_statistics import status_statistic
from tasks.storage.errors import StoreError
from tasks.storage.scratch_folders import scratch_folder

_BOX = ("box_x0", "box_y0", "box_x1", "box_y1")
_ENTRY = re.compile(r".*/(\d{8})\.json")
"""A write that was killed leaves a hidden file beside the entries, which is none."""
_COMPARED = ("dataset", "question_id", "status", "grid_height", "grid_width", "labels", *_BOX)
_QUESTIONS_AT_ONCE = 1 << 14


class PromotionRefused(SdrpnError):
    """A label set differs from the promoted one by more than the limits allow."""


def promotions(store: ArtifactStore, name: str) -> list[Promotion]:
    """Everything promoted under a configuration's name, oldest first.

    Raises:
        StoreError: naming an entry that cannot be read.
    """
    return [_read(store, key) for _, key in _entries(store, name)]


def last_promoted(store: ArtifactStore, name: str) -> ArtifactRef | None:
    """The label set that stands under a configuration's name; None before the first one."""
    history = promotions(store, name)
    return ArtifactRef.parse(history[-1].label_set) if history else None


def is_readable(store: ArtifactStore, label_set: ArtifactRef) -> bool:
    """Whether a label set is still there to compare with."""
    try:
        store.manifest(label_set)
    except (ArtifactNotFound, CorruptArtifact):
        return False
    return True


def measure_drift(
    store: ArtifactStore, previous: ArtifactRef | None, new: ArtifactRef
) -> LabelDrift:
    """Compare a label set with another; a share of their questions at a time is in memory.

    Raises:
        StoreError: if the previous one is gone, with the remedy.
    """
    made = store.manifest(new)
    now = _counts(made)
    if previous is None:
        return LabelDrift(new=now, previous=None)
    try:
        before = store.manifest(previous)
    except ArtifactNotFound as error:
        raise StoreError(
            f"{previous}, the last promoted label set, is not in the store any more; "
            "promote the new one with --force"
        ) from error
    agreement, num_both = _compared(store, before, made)
    old = _counts(before)
    return LabelDrift(
        new=now,
        previous=old,
        num_added=now.num_labelled - num_both,
        num_lost=old.num_labelled - num_both,
        num_compared=agreement.num_questions,
        box_overlap=agreement.box_overlap,
        cell_agreement=agreement.cell_agreement,
    )


def promote(
    store: ArtifactStore,
    name: str,
    drift: LabelDrift,
    limits: PromotionLimits,
    *,
    force: bool = False,
) -> Promotion:
    """Promote the new label set of a comparison; the same one again changes nothing.

    Args:
        store: where label sets and promotions are.
        name: the configuration's.
        drift: the label set beside the last promoted one.
        limits: what it may differ in.
        force: promote whatever it differs in, and record that.

    Raises:
        PromotionRefused: naming every limit that does not hold.
        StoreError: if another process has promoted since the comparison was begun.
    """
    entries = _entries(store, name)
    history = [_read(store, key) for _, key in entries]
    standing = history[-1].label_set if history else None
    if standing == drift.new.label_set:
        return history[-1]
    if standing is not None and standing != _compared_with(drift) and not force:
        raise _outrun(store, name, standing)
    breaches = limits.breaches(drift)
    if breaches and not force:
        raise PromotionRefused(
            f"{drift.new.label_set} is not promoted, "
            f"{standing or 'nothing'} stays: {'; '.join(breaches)}. "
            "Look at its labels, then raise the limit or promote it with "
            "`sdrpn labels promote --force`"
        )
    made = Promotion(
        label_set=drift.new.label_set,
        promoted_at=datetime.now(UTC).isoformat(timespec="seconds"),
        drift=drift,
        limits=limits,
        overruled=breaches,
    )
    number = entries[-1][0] + 1 if entries else 0  # not their count: damaged ones are deleted
    key = f"{_folder(name)}/{number:08d}.json"
    store.storage.create(key, (made.model_dump_json(indent=2) + "\n").encode())
    stored = _read(store, key)
    if stored.label_set != made.label_set:
        raise _outrun(store, name, stored.label_set)
    return stored


def _compared_with(drift: LabelDrift) -> str | None:
    return None if drift.previous is None else drift.previous.label_set


def _outrun(store: ArtifactStore, name: str, label_set: str) -> StoreError:
    return StoreError(
        f"{store.storage.uri(_folder(name))}: another run promoted {label_set} meanwhile; "
        "run again to compare with that"
    )


def _folder(name: str) -> str:
    return f"promotions/{name}"


def _entries(store: ArtifactStore, name: str) -> list[tuple[int, str]]:
    """Number and key of each promotion, oldest first."""
    found = (_ENTRY.fullmatch(entry.key) for entry in store.storage.find(_folder(name)))
    return sorted((int(match[1]), match[0]) for match in found if match)


def _read(store: ArtifactStore, key: str) -> Promotion:
    try:
        return Promotion.model_validate_json(store.storage.read(key))
    except ValidationError as error:
        raise StoreError(
            f"{store.storage.uri(key)}: is not a promotion ({error.errors()[0]['msg']}); "
            "delete it, then promote again"
        ) from error


def _counts(manifest: Manifest) -> LabelCounts:
    counts = manifest.statistics
    foreground, background = counts.get("num_foreground", 0), counts.get("num_background", 0)
    decided = foreground + background
    return LabelCounts(
        label_set=str(manifest.recipe.ref),
        num_questions=manifest.num_rows,
        num_labelled=int(counts.get(status_statistic(LabelStatus.OK.value), 0)),
        foreground_ratio=foreground / decided if decided else None,
    )


def _compared(store: ArtifactStore, before: Manifest, made: Manifest) -> tuple[LabelAgreement, int]:
    """Agreement of two label sets, and how many questions both have labelled."""
    num_shares = math.ceil(max(before.num_rows, made.num_rows, 1) / _QUESTIONS_AT_ONCE)
    agreement, num_both = LabelAgreement(), 0
    with scratch_folder() as folder:
        shares = [
            _labelled(store, one, folder / name, num_shares)
            for name, one in (("before", before), ("made", made))
        ]
        for number in range(num_shares):
            part, num_labelled_in_both = _compare(*(rows.frame(number) for rows in shares))
            agreement, num_both = agreement + part, num_both + num_labelled_in_both
    return agreement, num_both


def _labelled(
    store: ArtifactStore, label_set: Manifest, folder: Path, num_shares: int
) -> FrameBuckets:
    """The labelled rows of a set, in shares by question."""
    contract = empty_frame(label_set.recipe.schema_id).schema
    schema = without_enums(pl.Schema({name: contract[name] for name in _COMPARED}))
    rows = FrameBuckets(folder, schema, pl.col("question_id").hash() % num_shares, num_shares)
    for group in store.row_groups(label_set.recipe.ref, _COMPARED):
        rows.add(group.filter(pl.col("status") == LabelStatus.OK.value).cast(schema))
    return rows


def _compare(one: pl.DataFrame, other: pl.DataFrame) -> tuple[LabelAgreement, int]:
    """The same of two shares of the same questions."""
    both = one.join(other, on=("dataset", "question_id"), suffix="_other")
    alike = both.filter(
        pl.col("grid_height") == pl.col("grid_height_other"),
        pl.col("grid_width") == pl.col("grid_width_other"),
    )
    agreement = label_agreement(
        alike["labels"].explode(empty_as_null=False).to_numpy(),
        alike["labels_other"].explode(empty_as_null=False).to_numpy(),
        alike.select(_BOX).to_numpy(),
        alike.select(f"{side}_other" for side in _BOX).to_numpy(),
    )
    return (agreement if alike.height else LabelAgreement()), both.height
