"""The gate between a new label set and those who use the promoted one."""

from collections.abc import Callable
from dataclasses import dataclass

from data_contracts.artifact import ArtifactRef
from data_contracts.label_drift import LabelDrift, Promotion, PromotionLimits
from tasks.artifacts.store import ArtifactStore
from tasks.promote_labels import is_readable, last_promoted, measure_drift, promote

OnDrift = Callable[[LabelDrift], None]


@dataclass(frozen=True)
class Gate:
    """Compares a label set with the last promoted one, shows how, and promotes or refuses it."""

    limits: PromotionLimits
    on_drift: OnDrift
    """Told before anything is refused, so that a person sees why."""
    force: bool = False

    def __call__(self, store: ArtifactStore, name: str, label_set: ArtifactRef) -> Promotion:
        """Promote a configuration's new label set.

        Raises:
            PromotionRefused: naming every limit that does not hold.
        """
        previous = last_promoted(store, name)
        if self.force and previous is not None and not is_readable(store, previous):
            previous = None
        drift = measure_drift(store, previous, label_set)
        self.on_drift(drift)
        return promote(store, name, drift, self.limits, force=self.force)
