"""Wall time for what cannot be undone: a jump of the clock is followed after a day only.

A clock that is 40 days ahead for a second would let every user's time to live run out, and their state is deleted from
the changelog too. The monotonic clock tells a jump from time that has passed. A machine that was suspended wakes up
with such a jump as well, which is a true one; users then expire up to a day late.
"""

import logging
import time
from typing import Final

_DAY_SECONDS: Final = 86_400.0

log = logging.getLogger(__name__)


class SteadyClock:
    """Asked every now and then. The time it is made at is believed.

    Args:
        tolerance_seconds: The wall clock may go so much ahead or back between two questions; more is a jump.
    """

    def __init__(self, tolerance_seconds: float) -> None:
        self._tolerance = tolerance_seconds
        self._offset = time.time() - time.monotonic()  # of the wall clock, as it is believed
        self._other = self._offset  # where it has jumped to
        self._jumped_at = 0.0  # monotonic

    def seconds(self) -> float:
        """Seconds since 1970, never more than the wall clock's."""
        now = time.monotonic()
        offset = time.time() - now
        if abs(offset - self._offset) <= self._tolerance:
            self._offset = self._other = offset
        elif abs(offset - self._other) > self._tolerance:
            self._other, self._jumped_at = offset, now
            if offset > self._offset:
                what = (
                    "The clock jumped ahead by %.1f hours. Users expire as if it had not, for a day: correct the clock"
                )
                log.warning(what, (offset - self._offset) / 3600)
        elif now - self._jumped_at >= _DAY_SECONDS:
            self._offset = self._other = offset
        return now + min(offset, self._offset)
