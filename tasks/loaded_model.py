"""The model that this process has in memory, if any: one at a time.

Apart from what loads it: a process that has none can give it up without waiting for torch.
"""

import gc
from collections.abc import Callable
from threading import Lock
from typing import TYPE_CHECKING

from data_contracts.profiles import ModelProfile

if TYPE_CHECKING:
    from sdrpn_core.models.base import ModelAdapter


class LoadedModel:
    """One model, until another one is asked for."""

    def __init__(self) -> None:
        self._key: tuple[object, ...] | None = None
        self._profile: ModelProfile | None = None
        self._adapter: ModelAdapter | None = None
        self._lock = Lock()

    def adapter(
        self, key: tuple[object, ...], profile: ModelProfile, load: Callable[[], "ModelAdapter"]
    ) -> "ModelAdapter":
        """The model with a profile.

        Args:
            key: what tells its weights, and where they are, from others.
            profile: how it is to be used.
            load: loads it.
        """
        with self._lock:
            if self._adapter is None or self._key != key:
                self._drop()  # first: two models may be too many for the device
                self._adapter = load()
                self._key, self._profile = key, profile
            elif self._profile != profile:
                commit = {"revision": self._adapter.profile.revision}
                self._adapter = self._adapter.with_profile(profile.model_copy(update=commit))
                self._profile = profile
            return self._adapter

    def release(self) -> None:
        """Free its memory."""
        with self._lock:
            self._drop()

    def _drop(self) -> None:
        if self._adapter is None:
            return
        import torch

        self._adapter = self._key = self._profile = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


loaded = LoadedModel()


def release_model() -> None:
    """Free this process's model, because other processes are about to load it on its devices."""
    loaded.release()
