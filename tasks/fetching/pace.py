"""Patience with a server: how long to wait between attempts, and when to give up."""

import logging
import random
import threading
import time
from collections.abc import Callable

from data_contracts.addresses import concealed
from data_contracts.runtime import DownloadSettings
from tasks.fetching.remote import Hiccup, RemoteInfo

logger = logging.getLogger(__name__)


class Pace:
    """Waiting between attempts; a pause that a server asks for holds for every connection."""

    def __init__(self, settings: DownloadSettings, uri: str) -> None:
        self._settings = settings
        self._shown = concealed(uri)
        self._not_before = 0.0
        self.stopped = threading.Event()

    def patiently(self, attempt: Callable[[], RemoteInfo]) -> RemoteInfo:
        """Try until it works or patience ends."""
        num_failures = 0
        while True:
            try:
                return attempt()
            except Hiccup as error:
                num_failures += 1
                self.pause(error, num_failures)

    def pause(self, error: Hiccup, num_failures: int) -> None:
        """Wait before the next attempt; raises the error again when there is to be none."""
        settings = self._settings
        if num_failures >= settings.max_attempts:
            raise Hiccup(f"{error} ({num_failures} attempts)") from error
        if error.retry_after is not None and error.retry_after > settings.max_wait:
            raise Hiccup(
                f"{error} and asks for a pause of {error.retry_after:.0f} s, more than "
                f"downloads.max_wait"
            ) from error
        jitter = random.Random().uniform(0.5, 1.0)
        own = min(settings.first_wait * 2 ** (num_failures - 1), 60.0) * jitter
        wait = max(own, error.retry_after or 0.0)
        self._not_before = max(self._not_before, time.monotonic() + wait)
        # One hiccup is nothing to worry about; a server that is down lets a user wait long.
        level = logging.INFO if num_failures == 1 else logging.WARNING
        logger.log(level, "%s: %s; again in %.1f s", self._shown, error, wait)
        self.hold()

    def hold(self) -> None:
        """Wait until asking is allowed, unless another connection has failed for good."""
        while not self.stopped.is_set():
            left = self._not_before - time.monotonic()
            if left <= 0:
                return
            self.stopped.wait(left)
