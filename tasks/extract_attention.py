"""Stage ``extract-attention``: the frozen model answers, and what its answers attend to is kept.

With ``responses: dataset`` the answers are the data set's own (``tasks/given_responses.py``).
Shards may be made by any number of processes; each loads the model once.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial

import polars as pl

from data_contracts.artifact import ArtifactRef, Manifest, Recipe
from data_contracts.configs import ExtractionConfig, ModelConfig
from data_contracts.enums import ExtractionStatus, QuestionKind, RecordStatus
from data_contracts.errors import SdrpnError
from data_contracts.registry import frame_of
from sdrpn_core.extraction.generated_answers import (
    NOT_FINITE,
    ExtractedAttention,
    Request,
    extract_attention,
)
from sdrpn_core.models.base import ModelAdapter
from sdrpn_core.models.prompts import ImageFeatures
from tasks import recipes
from tasks.artifacts.device_memory import BatchSize, batch_size_of
from tasks.artifacts.row_ranges import overlapping, shard_range
from tasks.artifacts.stage import FrameShard, StageRun
from tasks.artifacts.store import ArtifactStore
from tasks.asked_kinds import require_heads
from tasks.attention_reuse import earlier_rows
from tasks.attention_rows import attention_rows
from tasks.given_responses import given_rows, has_mixed_turns
from tasks.models import adapter_for_labels, model_identity, profile_of
from tasks.opened_images import Row, Turns
from tasks.shard_statistics import num_usable, status_statistic
from tasks.unanswered import require_answers, warn_of_unanswered


class TooManyFailures(SdrpnError):
    """So many rows fail that the source or a setting, not the rows, is likely at fault."""


def attention_recipe(
    run: StageRun, records: ArtifactRef, model: ModelConfig, settings: ExtractionConfig
) -> Recipe:
    """What to make from the questions of one source.

    Raises:
        NoAnswers: if answers are to be the data set's own, and it has none.
        UncalibratedProfile: before any model is loaded, if its profile names no heads for a kind
            of question that is asked.
    """
    profile = profile_of(model)
    profile.require_calibrated()
    require_heads(run.store, records, profile)
    manifest, identity = run.store.manifest(records), model_identity(model)
    if settings.responses == "dataset":
        require_answers(
            run.store,
            records,
            str(records),
            "no label could come of them (extraction.responses is `dataset`)",
            "leave that setting out, and the model answers",
        )
    is_given = settings.responses == "dataset" and profile.next_turn is not None
    return recipes.attention_recipe(
        manifest,
        settings,
        identity,
        profile.next_turn,
        has_mixed_turns=is_given and has_mixed_turns(run.store, records),
    )


def make_attention_shard(
    run: StageRun,
    recipe: Recipe,
    index: int,
    records: ArtifactRef,
    model: ModelConfig,
    settings: ExtractionConfig,
) -> FrameShard:
    """Extract the attention of one shard's questions.

    Raises:
        TooManyFailures: if more images are unreadable, or more answers not finite, than the
            settings allow.
    """
    known: dict[str, Row] = {}
    fitting = batch_size_of(recipe.ref, run.runtime.batch_size)
    if settings.responses == "dataset":
        if index == 0:
            warn_of_unanswered(run.store, records, str(records), "give no labels")
        # Nothing is taken over: these rows depend on answers and earlier turns, which ids do not.
        given = given_rows(run, records, recipe.num_shards, index, model, settings, fitting)
        rows = list(given)
    else:
        questions = usable_questions(run.store, records, recipe.num_shards, index)
        known = {} if run.force else earlier_rows(run.store, recipe, questions)
        new = [question for question in questions if question["question_id"] not in known]
        rows = [*known.values(), *_extract(run, new, model, settings, fitting)]
    _require_readable(rows, settings)
    frame = frame_of(rows, recipe.schema_id)
    statistics: Counter[str] = Counter(status_statistic(row["status"]) for row in rows)
    statistics["response_tokens"] = sum(row["num_response_tokens"] for row in rows)
    statistics["reused_rows"] = len(known)
    return FrameShard(frame, statistics, fitting.measured)


def usable_questions(
    store: ArtifactStore, records: ArtifactRef, num_shards: int, index: int
) -> list[Row]:
    """Questions of one of ``num_shards`` even shares, read from no more shards than needed."""
    manifest = store.manifest(records)
    name = status_statistic(RecordStatus.OK)
    counts = [int(shard.statistics.get(name, 0)) for shard in manifest.shards]
    rows: list[Row] = []
    for shard, inside in overlapping(counts, shard_range(num_usable(manifest), num_shards, index)):
        usable = _usable_rows(_Shard(manifest.shards[shard].sha256, store, manifest, shard))
        rows += usable.slice(inside.start, len(inside)).to_dicts()
    return rows


@dataclass(frozen=True)
class _Shard:
    """Questions by the digest of their bytes, wherever they are."""

    sha256: str
    store: ArtifactStore = field(compare=False)
    manifest: Manifest = field(compare=False)
    index: int = field(compare=False)


@lru_cache(maxsize=1)
def _usable_rows(shard: _Shard) -> pl.DataFrame:
    """Kept for the next share: a shard of many-turned conversations holds dozens of them."""
    frame = shard.store.read_shard_frame(shard.manifest, shard.index)
    return frame.filter(pl.col("status") == RecordStatus.OK.value)


def usable_ids(store: ArtifactStore, records: ArtifactRef) -> list[str]:
    """Ids of the usable questions, in the order that shares are cut from."""
    is_usable = pl.col("status") == RecordStatus.OK.value
    frames = store.frames(records, ["question_id", "status"])
    return [found for frame in frames for found in frame.filter(is_usable)["question_id"]]


def _extract(
    run: StageRun,
    questions: Sequence[Row],
    model: ModelConfig,
    settings: ExtractionConfig,
    fitting: BatchSize,
) -> list[Row]:
    """Rows of these questions, in their order."""
    if not questions:
        return []
    adapter = adapter_for_labels(model, run.runtime)

    def extract(
        batch: Sequence[Turns], features: Sequence[ImageFeatures]
    ) -> list[list[ExtractedAttention]]:
        requests = [
            Request(None, question["question"], QuestionKind(question["kind"]))
            for (question,) in batch
        ]
        found = extract_attention(
            adapter, requests, max_new_tokens=settings.max_new_tokens, features=features
        )
        return [[maps] for maps in found]

    asked = [[question] for question in sorted(questions, key=partial(_is_long_answer, adapter))]
    rows = attention_rows(run.store, adapter, asked, run.runtime.batch_size, extract, fitting)
    by_id = {row["question_id"]: row for row in rows}
    return [by_id[question["question_id"]] for question in questions]


def _is_long_answer(adapter: ModelAdapter, question: Row) -> bool:
    """Whether the profile asks for longer answers than data sets do, say for lists of boxes.

    A batch takes as many steps as its longest answer.
    """
    return QuestionKind(question["kind"]) in adapter.profile.extraction_instructions


def _require_readable(rows: Sequence[Row], settings: ExtractionConfig) -> None:
    tolerated = max(settings.tolerated_failures, settings.max_failure_rate * len(rows))
    overflown = [row for row in rows if row["reason"] == NOT_FINITE]
    if len(overflown) > tolerated:
        raise TooManyFailures(
            f"{len(overflown)} of {len(rows)} questions have no labels (question "
            f"{overflown[0]['question_id']}: {NOT_FINITE})"
        )
    failed = [row for row in rows if row["status"] == ExtractionStatus.UNREADABLE_IMAGE.value]
    if len(failed) > tolerated:
        raise TooManyFailures(
            f"{len(failed)} of {len(rows)} images cannot be read "
            f"({failed[0]['image_uri']}: {failed[0]['reason']}); mend the source, or raise "
            "extraction.max_failure_rate to go on without them"
        )
