"""An RPN that an earlier run already trained, for other region settings.

Regions decide how maps become boxes, and what is read of crops. What the network learns does not
depend on them, only the threshold that is chosen at the end. So a change of regions takes the
weights that there are: training takes hours beside a large model.
"""

import logging

from data_contracts.artifact import ArtifactRef, Recipe, ShardEntry
from sdrpn_core.rpn.checkpoint import RpnCheckpoint
from sdrpn_core.rpn.checkpoint_files import CheckpointError
from tasks.artifacts.admin import committed_artifacts
from tasks.artifacts.errors import ArtifactNotFound, CorruptArtifact
from tasks.artifacts.store import ArtifactStore
from tasks.rpn_files import stored_checkpoint

log = logging.getLogger(__name__)

_REGIONS = "regions"


def trained_for_other_regions(store: ArtifactStore, recipe: Recipe) -> list[ArtifactRef]:
    """Finished RPNs whose recipes differ in nothing but regions, oldest first.

    Those are left out whose files are gone or of another size than was committed.

    Args:
        store: where to look.
        recipe: of the RPN that is being made.
    """
    return [
        made.recipe.ref
        for made in committed_artifacts(store, recipe.stage)
        if _without_regions(made.recipe) == _without_regions(recipe)
        and all(_is_there(store, made.recipe.ref, shard) for shard in made.shards)
    ]


def earlier_training(store: ArtifactStore, recipe: Recipe) -> RpnCheckpoint | None:
    """One of those, if any can be read; damaged ones are warned about."""
    for ref in trained_for_other_regions(store, recipe):
        try:
            found = stored_checkpoint(store, ref)
        except (ArtifactNotFound, CorruptArtifact, CheckpointError) as error:
            log.warning("%s; its training is not used", error)
            continue
        log.warning("%s was trained for other regions only: its weights are taken", ref)
        return found
    return None


def _is_there(store: ArtifactStore, ref: ArtifactRef, shard: ShardEntry) -> bool:
    return store.storage.size(f"{ref.prefix}/{shard.key}") == shard.num_bytes


def _without_regions(recipe: Recipe) -> Recipe:
    config = {name: value for name, value in recipe.config.items() if name != _REGIONS}
    return recipe.model_copy(update={"config": config})
