"""Drift: has the rate at which the serving model foretells events fallen abruptly?

References:
    Bifet and Gavalda, "Learning from time-changing data with adaptive windowing", SDM 2007 (ADWIN).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from river.drift import ADWIN


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
    """Watches hits (1) and misses (0) of the serving model, one by one, in order.

    Only a fall is an alarm; a rise, as after a better version, merely shortens the memory.

    Args:
        delta: ADWIN's confidence: about the chance of a false alarm per check.
        grace: Hits before the first alarm.

    Example:
        >>> rng, watch = np.random.default_rng(0), DriftWatch()
        >>> watch.watch(rng.random(5000) < 0.3)
        >>> alarm = watch.watch(rng.random(2000) < 0.1)
        >>> alarm is not None and alarm.position < 5500
        True
    """

    def __init__(self, delta: float = 0.0005, grace: int = 500) -> None:
        self._adwin = ADWIN(delta=delta, grace_period=30)
        self._grace = grace
        self.position = 0

    @property
    def rate(self) -> float:
        """Hit rate since the last change."""
        return float(self._adwin.estimation)

    @property
    def width(self) -> int:
        """Events since the last change."""
        return int(self._adwin.width)

    def watch(self, hits: NDArray[np.bool_]) -> Alarm | None:
        """Take in hits (N,); the first fall among them, if any."""
        alarm = None
        adwin = self._adwin
        for hit in hits.astype(np.int64).tolist():
            before = adwin.estimation
            adwin.update(hit)
            self.position += 1
            if adwin.drift_detected and adwin.estimation < before and self.position > self._grace and alarm is None:
                alarm = Alarm(self.position, float(before), float(adwin.estimation), int(adwin.width))
        return alarm
