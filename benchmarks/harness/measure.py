"""Speed seen from the outside: how the output topic grows, and what CPU time the process spent meanwhile."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness.processes import BenchmarkError, Measured

POLL_SECONDS: Final = 0.05
STALL_SECONDS: Final = 90.0


@dataclass(frozen=True, slots=True)
class Growth:
    """Samples of a counter: seconds (N,), count (N,) and the process's CPU seconds (N,), all from the same moments."""

    seconds: NDArray[np.float64]
    counts: NDArray[np.int64]
    cpu_seconds: NDArray[np.float64]

    def _at(self, count: float, column: NDArray[np.float64]) -> float:
        """The column's value at the moment the counter passed `count`, linear between two samples."""
        after = int(np.searchsorted(self.counts, count))
        before = max(after - 1, 0)
        low, high = float(self.counts[before]), float(self.counts[after])
        share = (count - low) / (high - low) if high > low else 0.0
        return float(column[before] + share * (column[after] - column[before]))

    def between(self, start: float, end: float) -> tuple[float, float]:
        """Seconds and CPU seconds from count `start` to count `end`."""
        wall = self._at(end, self.seconds) - self._at(start, self.seconds)
        cpu = self._at(end, self.cpu_seconds) - self._at(start, self.cpu_seconds)
        return wall, cpu


@dataclass(frozen=True, slots=True)
class Speed:
    """Events/s and CPU microseconds per event over the middle of a run."""

    events_per_second: float
    cpu_us_per_event: float
    measured_events: int
    resident_mb: float


def watch(count: Callable[[], int], process: Measured, target: int) -> Growth:
    """Sample a counter every 50 ms until it reaches `target`.

    Raises:
        BenchmarkError: The process ended, or the counter did not move for 90 s.
    """
    rows: list[tuple[float, int, float]] = []
    moved = time.monotonic()
    while True:
        now = time.monotonic()
        value = count()
        rows.append((now, value, process.cpu_seconds()))
        if value >= target:
            seconds, counts, cpu = zip(*rows, strict=True)
            return Growth(np.array(seconds), np.array(counts), np.array(cpu))
        if len(rows) > 1 and value > rows[-2][1]:
            moved = now
        process.check()
        if now - moved > STALL_SECONDS:
            what = f"{process.name} stopped at {value:,} of {target:,} outputs"
            raise BenchmarkError(what, f"nothing for {STALL_SECONDS:.0f} s: {process.log_tail()}", "")
        time.sleep(POLL_SECONDS)


def middle_speed(growth: Growth, target: int, resident_bytes: int, skip: float = 0.1) -> Speed:
    """Speed between `skip` and 1 - `skip` of the target: starting, joining, compiling and draining are left out."""
    start, end = skip * target, (1 - skip) * target
    wall, cpu = growth.between(start, end)
    return Speed((end - start) / wall, 1e6 * cpu / (end - start), int(end - start), resident_bytes / 1e6)
