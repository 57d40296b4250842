"""What settling the rows of a source means, with all of them in memory."""

from collections import Counter, defaultdict
from collections.abc import Sequence

from data_contracts.enums import RecordStatus
from sdrpn_core.records import Row, repeated_id

OK = RecordStatus.OK.value


def settled_records(
    arrived: Sequence[Row], max_records: int | None, *, keep_repeats: bool
) -> list[Row]:
    """Every row with its final id, status and reason, in order of their ids."""
    rows = _renamed(arrived)
    if not keep_repeats:
        _flag_repeats(rows)
    rows.sort(key=lambda row: row["question_id"])
    usable = [row["question_id"] for row in rows if row["status"] == OK][:max_records]
    return [row for row in rows if row["status"] != OK or row["question_id"] in usable]


def _renamed(arrived: Sequence[Row]) -> list[Row]:
    seen: Counter[str] = Counter()
    rows = [dict(row) for row in arrived]
    for row in rows:
        first = row["question_id"]
        seen[first] += 1
        if seen[first] > 1:
            row["question_id"] = repeated_id(first, seen[first])
            if row["status"] == OK:
                _flag(row, first)
    return rows


def _flag_repeats(rows: Sequence[Row]) -> None:
    asked: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        if row["status"] == OK:
            asked[row["image_sha256"], row["question"]].append(row)
    for same in asked.values():
        first = min(row["question_id"] for row in same)
        for row in same:
            if row["question_id"] != first:
                _flag(row, first)


def _flag(row: Row, first: str) -> None:
    row["status"] = RecordStatus.DUPLICATE.value
    row["reason"] = f"same image and question as {first}"
