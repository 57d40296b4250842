"""Kinds that a source's questions are of, and whether the model's profile has heads for them."""

import polars as pl

from data_contracts.artifact import ArtifactRef
from data_contracts.enums import QuestionKind, RecordStatus
from data_contracts.profiles import ModelProfile
from tasks.artifacts.store import ArtifactStore


def require_heads(store: ArtifactStore, questions: ArtifactRef, profile: ModelProfile) -> None:
    """See to it that attention can be read of all questions of a source.

    A profile with other heads makes other artifacts: found out in the middle of a source, all that
    was extracted until then would have been extracted for nothing.

    Raises:
        UncalibratedProfile: if the profile has no heads for a kind of question that is asked.
    """
    if profile.heads.keys() == set(QuestionKind):
        return
    for frame in store.frames(questions, ["status", "kind"]):
        is_asked = pl.col("status") == RecordStatus.OK.value
        for kind in frame.filter(is_asked)["kind"].unique(maintain_order=True):
            profile.heads_for(QuestionKind(kind))
