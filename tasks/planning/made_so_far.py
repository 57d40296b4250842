"""How much of an artifact is in the store: read there, without beginning the artifact."""

from dataclasses import dataclass

from data_contracts.artifact import ArtifactRef, Manifest, Recipe
from data_contracts.enums import Stage
from tasks.artifacts.checkpoints import latest_step
from tasks.artifacts.keys import RECIPE
from tasks.artifacts.store import ArtifactStore
from tasks.sources.same_files import perhaps_same_files
from tasks.training_reuse import trained_for_other_regions


@dataclass(frozen=True)
class MadeSoFar:
    """One artifact of a run, before the run."""

    num_shards: int | None = None
    """None as long as that depends on what is still to be made before it."""
    num_done: int = 0
    """Shards that have a receipt."""
    last_step: int | None = None
    """Of the latest resume point; None if there is none."""
    has_weights: bool = False
    """Whether it is an RPN that was trained for other regions already."""
    manifest: Manifest | None = None
    """None unless it is committed."""
    problem: str | None = None
    """Why nothing could be found out; then it counts as still to be made."""

    @property
    def is_done(self) -> bool:
        """Whether a run would take it as it is."""
        return self.manifest is not None


def committed(store: ArtifactStore, ref: ArtifactRef) -> MadeSoFar:
    """A committed artifact."""
    manifest = store.manifest(ref)
    num_shards = manifest.recipe.num_shards
    return MadeSoFar(num_shards, num_shards, manifest=manifest)


def begun(store: ArtifactStore, recipe: Recipe) -> MadeSoFar:
    """An artifact that is not committed, perhaps not even begun.

    Raises:
        CorruptArtifact: if a receipt cannot be read, at which a run would stop too.
    """
    is_rpn = recipe.stage is Stage.TRAIN_RPN
    has_weights = is_rpn and bool(trained_for_other_regions(store, recipe))
    problem = _problem(store, recipe)
    if store.read_document(recipe.ref, RECIPE, Recipe) is None:
        return MadeSoFar(recipe.num_shards, has_weights=has_weights, problem=problem)
    return MadeSoFar(
        num_shards=recipe.num_shards,
        num_done=sum(entry is not None for entry in store.receipts(recipe)),
        last_step=latest_step(store.storage, recipe.ref.prefix),
        has_weights=has_weights,
        problem=problem,
    )


def _problem(store: ArtifactStore, recipe: Recipe) -> str | None:
    """Why a download may turn out to be an earlier one; None if it will not."""
    if recipe.stage is not Stage.DOWNLOAD:
        return None
    other = perhaps_same_files(store, recipe)
    if other is None:
        return None
    return f"only reading its images tells whether they are those of {other}, which then stays"
