"""Servers that keep a connection open by a byte now and then, and would do so for ever."""

import time

_MIN_RATE = 1024
"""Bytes a second. Less is no transfer: a file of one GiB would take two weeks."""


class Trickle(Exception):
    """Too little came of what was waited for."""


class Flow:
    """What comes of one answer, held against the time that was spent waiting for it."""

    def __init__(self, seconds: float) -> None:
        """Begin to wait.

        Args:
            seconds: over how long the rate is taken; a server may be silent as long, too.
        """
        self._seconds = seconds
        self._num_bytes, self._waited = 0, 0.0
        self._since = time.monotonic()

    def came(self, num_bytes: int) -> None:
        """Count what was waited for.

        Raises:
            Trickle: if too little of it comes.
        """
        self._num_bytes += num_bytes
        self._waited += time.monotonic() - self._since
        if self._waited >= self._seconds:
            if self._num_bytes < _MIN_RATE * self._waited:
                raise Trickle(f"{self._num_bytes} bytes came in {self._waited:.0f} s")
            self._num_bytes, self._waited = 0, 0.0

    def wait(self) -> None:
        """What came is dealt with; the time that this took does not count."""
        self._since = time.monotonic()
