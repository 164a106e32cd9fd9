"""Drift: has the rate at which the serving model foretells events fallen abruptly?

ADWIN finds changes of a mean, small ones too once it has seen much. A stream's hit rate always wanders, as users come
and go who are easier or harder to foretell, and a user's hits come together, which ADWIN does not know; so a detected
change is only a suspicion. It becomes an alarm when the events since are foretold worse by a good part, and surely so
with users, not events, as the independent observations.

References:
    Bifet and Gavalda, "Learning from time-changing data with adaptive windowing", SDM 2007 (ADWIN); Cameron and Miller,
    "A practitioner's guide to cluster-robust inference", Journal of Human Resources 2015.
"""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from river.drift import ADWIN

_SUSPICION: Final = 3_000  # hits after a detected change within which the fall must have shown
_MEMORY: Final = 4_096  # hits whose users are remembered
_CHECK: Final = 32  # hits between two tests of a suspicion
_FEWEST_USERS: Final = 20
_SURE: Final = 2.5  # standard errors between the rate since the change and half of the least fall


@dataclass(frozen=True, slots=True)
class Alarm:
    """A fall of the hit rate.

    Attributes:
        position: How many hits had been watched when it was noticed.
        before: Hit rate before the change.
        after: Hit rate since.
        width: Events since the change, as far as ADWIN can tell.
    """

    position: int
    before: float
    after: float
    width: int


class DriftWatch:
    """Watches hits and misses of the serving model, one by one, in order.

    Only a fall is an alarm; a rise, as after a better version, merely shortens the memory.

    Args:
        delta: ADWIN's confidence: about the chance of a false suspicion per check.
        fall: Least share of the hit rate lost that makes a suspicion an alarm.
        grace: Hits before the first alarm.

    Example:
        >>> rng, watch = np.random.default_rng(0), DriftWatch()
        >>> watch.watch(rng.random(5000) < 0.3, rng.integers(0, 400, 5000))
        >>> alarm = watch.watch(rng.random(2000) < 0.1, rng.integers(0, 400, 2000))
        >>> alarm is not None and alarm.position < 5500
        True
    """

    def __init__(self, delta: float = 0.002, fall: float = 0.35, grace: int = 500) -> None:
        self._adwin = ADWIN(delta=delta, grace_period=30)
        self._fall, self._grace = fall, grace
        self._suspected_at = -_SUSPICION
        self._reference = 0.0  # hit rate before the suspected change
        self._users = np.zeros(_MEMORY, np.uint64)  # ring: the newest hits' users and whether they hit
        self._hits = np.zeros(_MEMORY, np.bool_)
        self.position = 0

    @property
    def rate(self) -> float:
        """Hit rate since the last change."""
        return float(self._adwin.estimation)

    @property
    def width(self) -> int:
        """Hits since the last change."""
        return int(self._adwin.width)

    def watch(self, hits: NDArray[np.bool_], users: NDArray[Any]) -> Alarm | None:
        """Take in hits or misses (N,) and whose they are (N,); the first alarm among them, if any."""
        alarm = None
        adwin = self._adwin
        for hit, user in zip(hits.astype(np.int64).tolist(), users.astype(np.uint64).tolist(), strict=True):
            before = adwin.estimation
            adwin.update(hit)
            self._users[self.position % _MEMORY], self._hits[self.position % _MEMORY] = user, hit
            self.position += 1
            suspicious = self.position - self._suspected_at <= _SUSPICION
            if not suspicious and not adwin.drift_detected:
                continue
            if adwin.drift_detected and adwin.estimation < before:
                # Its whole memory before it shrank: mostly what was before the change.
                self._reference = max(self._reference, float(before)) if suspicious else float(before)
                self._suspected_at, suspicious = self.position, True
            fallen = adwin.estimation <= (1 - self._fall) * self._reference
            due = self.position > self._grace and (adwin.drift_detected or self.position % _CHECK == 0)
            if suspicious and fallen and due and alarm is None and self._sure():
                alarm = Alarm(self.position, self._reference, float(adwin.estimation), int(adwin.width))
                self._suspected_at, self._reference = -_SUSPICION, 0.0
        return alarm

    def _sure(self) -> bool:
        """Whether the fall is beyond what other users alone would make of it."""
        size = min(int(self._adwin.width), self.position, _MEMORY)
        newest = (self.position - 1 - np.arange(size)) % _MEMORY
        owners = np.unique(self._users[newest], return_inverse=True)[1]
        sizes, sums = np.bincount(owners), np.bincount(owners, self._hits[newest])
        if len(sizes) < _FEWEST_USERS:
            return False
        rate = sums.sum() / size
        deviation = float(np.sqrt(((sums - rate * sizes) ** 2).sum())) / size
        floor = np.sqrt(rate * (1 - rate) / size + 1 / size**2)  # where hardly anything hits, one more would
        wanted = (1 - self._fall / 2) * self._reference
        return bool(rate + _SURE * max(deviation, floor) <= wanted)
