"""When to train: after so many events, so much time, or at once when the serving model stops foretelling events."""

from dataclasses import dataclass
from typing import Final, Literal

from models.drift import Alarm

Trigger = Literal["cold-start", "events", "time", "drift"]

_MORE: Final = 1.25  # times the events of a first model that was rejected or failed, before the next


@dataclass(frozen=True, slots=True)
class CadenceSettings:
    """When to train.

    Attributes:
        every_events: New events between two passes; while fewer than that were ever seen, every doubling.
        every_seconds: Most time between two passes; 0 leaves it to the events.
        cold_start_events: Events before the first model.
        least_new: New events that a pass is worth.
        drift_least: Events since a change before the first pass after its alarm: fewer teach nothing.
        drift_every: New events between two passes after an alarm.
        drift_passes: Passes after an alarm before the usual cadence again.
        recovered: Share of the hit rate before an alarm that ends its hurry.
        recovered_least: Tested events behind a hit rate before it says so: a window of 32 is lucky every other time.
    """

    every_events: int = 2_500
    every_seconds: float = 300.0
    cold_start_events: int = 2_000
    least_new: int = 200
    drift_least: int = 500
    drift_every: int = 1_000
    drift_passes: int = 8
    recovered: float = 0.9
    recovered_least: int = 500


class Cadence:
    """Decides when the next pass is due. It is told the time and never asks for it.

    Args:
        settings: When to train.
        seen: Events seen when the serving version's sample was taken, 0 for none.
        now_seconds: The time.

    Example:
        >>> cadence = Cadence(CadenceSettings(), seen=10_000, now_seconds=0.0)
        >>> cadence.due(12_499, 10.0, True), cadence.due(12_500, 10.0, True), cadence.due(10_300, 301.0, True)
        (None, 'events', 'time')
    """

    def __init__(self, settings: CadenceSettings, seen: int, now_seconds: float) -> None:
        self._settings, self._seen, self._since = settings, seen, now_seconds
        self._alarm_at: int | None = None  # events seen when the change began
        self._hurried = 0  # passes since the alarm
        self._wanted_rate = 0.0
        self._rejected_at = 0  # events seen at the newest pass that was rejected
        self._failed_at = 0  # events seen at the newest pass, when that failed

    def due(self, seen: int, now_seconds: float, serving: bool) -> Trigger | None:
        """Why a pass should begin now, None when it should not.

        Args:
            seen: Events seen so far.
            now_seconds: The time.
            serving: Whether there is a model yet.
        """
        settings, new = self._settings, seen - self._seen
        late = settings.every_seconds > 0 and now_seconds - self._since >= settings.every_seconds
        if not serving:
            wait = max(self._rejected_at, 0 if late else self._failed_at)
            enough = seen >= max(settings.cold_start_events, _MORE * wait) and new >= settings.least_new
            return "cold-start" if enough else None
        if self._alarm_at is not None:
            first = not self._hurried and seen - self._alarm_at >= settings.drift_least
            if first or (self._hurried and new >= settings.drift_every):
                return "drift"
        if new >= min(settings.every_events, max(self._seen, settings.cold_start_events)):
            return "events"
        return "time" if late and new >= settings.least_new else None

    def began(self, seen: int, now_seconds: float) -> None:
        """A pass has begun, or had nothing to learn."""
        self._seen, self._since, self._failed_at = seen, now_seconds, 0
        if self._alarm_at is not None:
            self._hurried += 1
            if self._hurried > self._settings.drift_passes:
                self._calm()

    def alarm(self, alarm: Alarm, seen: int) -> None:
        """The hit rate has fallen."""
        self._alarm_at, self._hurried = max(0, seen - alarm.width), 0
        self._wanted_rate = max(self._wanted_rate, self._settings.recovered * alarm.before)

    @property
    def changed_at(self) -> int | None:
        """Events seen when the change began that an alarm told of, None when there is none."""
        return self._alarm_at

    def observe(self, rate: float, events: int) -> None:
        """The hit rate over so many of the newest events; once it has recovered the usual cadence is enough."""
        enough = events >= self._settings.recovered_least
        if self._alarm_at is not None and self._hurried and enough and rate >= self._wanted_rate:
            self._calm()

    def rejected(self) -> None:
        """The pass was not good enough. A first model waits for a quarter more events: a fit goes through all of them.

        When it was begun after an alarm, that was false: older events are still true.

        Such passes take two to three times as long as others. Going on with them after one was rejected left a running
        system on MovieLens-100K without a new version for 36,000 events.
        """
        self._rejected_at = self._seen
        if self._hurried:
            self._calm()

    def failed(self) -> None:
        """The pass came to an error. A first model waits for a quarter more events too, as it may fail again.

        Or for the most time between two passes: what was missing, a registry or room on the disk, may be there again.
        Later models wait for their usual cadence.
        """
        self._failed_at = self._seen

    def _calm(self) -> None:
        self._alarm_at, self._hurried, self._wanted_rate = None, 0, 0.0
