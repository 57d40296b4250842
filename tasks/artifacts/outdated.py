"""Whether a table of an evaluation was made of the answers that are there now.

Ids digest recipes, not bytes: answers made anew by force keep their address, and a table that was
not made anew after them keeps its own. So a table has a note of which answers it is of. It is
written when the table is begun; a clock would not do, as it may have been ahead, or another's.
"""

from collections.abc import Sequence

from pydantic import RootModel

from data_contracts.artifact import ArtifactRef, Recipe
from data_contracts.enums import Stage
from tasks.artifacts.keys import INPUTS
from tasks.artifacts.store import ArtifactStore


class _Note(RootModel[dict[str, str]]):
    """Artifact -> digest of its manifest, which is another whenever it is made again."""


def is_outdated(store: ArtifactStore, recipe: Recipe) -> bool:
    """Whether a committed table is of other answers than there are now.

    A forced evaluation that was stopped halfway, and gone on with unforced, would end with new
    answers beside the old ones' table.

    Raises:
        ArtifactNotFound: if the answers are not committed.
    """
    by_note = is_of_other_answers(store, recipe)
    if by_note is not None:
        return by_note
    # Tables of earlier releases have no note.
    made_at = store.manifest(recipe.ref).created_at
    return any(store.manifest(ref).created_at > made_at for ref in _answers(recipe))


def is_of_other_answers(store: ArtifactStore, recipe: Recipe) -> bool | None:
    """Whether a table, which may be only begun, has a note of other answers; None without a note.

    Raises:
        ArtifactNotFound: if the answers are not committed.
    """
    answers = _answers(recipe)
    note = store.read_document(recipe.ref, INPUTS, _Note) if answers else None
    return None if note is None else note != _note(store, answers)


def note_answers(store: ArtifactStore, recipe: Recipe) -> None:
    """Keep with a table that is begun which answers it is made of; nothing for all else."""
    if answers := _answers(recipe):
        store.write_document(recipe.ref, INPUTS, _note(store, answers))


def _answers(recipe: Recipe) -> list[ArtifactRef]:
    """Inputs of a table that the same stage makes, and may make anew: answers, or other tables."""
    if recipe.stage is not Stage.EVALUATE:
        return []
    inputs = (ArtifactRef.parse(text) for text in recipe.inputs)
    return [ref for ref in inputs if ref.stage is recipe.stage]


def _note(store: ArtifactStore, answers: Sequence[ArtifactRef]) -> _Note:
    return _Note({str(ref): store.manifest_digest(ref) for ref in answers})
