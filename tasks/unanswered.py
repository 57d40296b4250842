"""Questions that their source gives no answer to: how many there are, and when all are."""

import logging

import polars as pl

from data_contracts.artifact import ArtifactRef
from data_contracts.enums import RecordStatus
from data_contracts.errors import SdrpnError
from tasks.artifacts.store import ArtifactStore
from tasks.shard_statistics import num_usable

log = logging.getLogger(__name__)


class NoAnswers(SdrpnError):
    """Not one question has an answer where answers are needed; the message says what for."""


_IS_ASKED = pl.col("status") == RecordStatus.OK.value
_HAS_ANSWER = pl.col("answers").list.len() > 0


def num_unanswered(store: ArtifactStore, questions: ArtifactRef) -> int:
    """Questions that can be asked, and have no answer."""
    frames = store.all_frames(store.manifest(questions), ["status", "answers"])
    return sum(frame.filter(_IS_ASKED & ~_HAS_ANSWER).height for frame in frames)


def require_answers(
    store: ArtifactStore, questions: ArtifactRef, name: str, consequence: str, remedy: str
) -> None:
    """See to it that some question has an answer; no more is read than tells.

    Args:
        store: where they are.
        questions: of one source.
        name: what messages call it.
        consequence: what comes of it if all are without, said after "so".
        remedy: what can be done beside giving answers, said after "or".

    Raises:
        NoAnswers: if all are.
    """
    frames = store.frames(questions, ["status", "answers"])
    if not any(frame.filter(_IS_ASKED & _HAS_ANSWER).height for frame in frames):
        num_questions = num_usable(store.manifest(questions))
        raise NoAnswers(
            f"{name}: not one of its {num_questions} questions has a reference answer, so "
            f'{consequence}; give the answers as turns from "gpt", or {remedy}'
        )


def warn_of_unanswered(
    store: ArtifactStore, questions: ArtifactRef, name: str, consequence: str
) -> None:
    """Say how many questions have no answer, if any, and what comes of it."""
    if without := num_unanswered(store, questions):
        log.warning(
            "%s: %d of %d questions have no reference answer and %s",
            name,
            without,
            num_usable(store.manifest(questions)),
            consequence,
        )
