"""Consumer lag per partition: how many events the broker has that this worker has not read."""

from typing import Any, Final

from mode import Service

from state.events import TOPICS
from streams.metrics import Metrics

_EVERY_SECONDS: Final = 2.0


class LagWatch(Service):  # type: ignore[misc]
    """Compares the newest offset the broker told with the position of the consumer."""

    def __init__(self, app: Any, metrics: Metrics, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._app, self._metrics = app, metrics
        self._known: set[tuple[str, str]] = set()

    @Service.task  # type: ignore[untyped-decorator]
    async def _watch(self) -> None:
        while not self.should_stop:
            await self.sleep(_EVERY_SECONDS)
            if self.should_stop:  # perhaps before there was a consumer to ask
                return
            self._look()

    def _look(self) -> None:
        consumer = self._app.consumer
        if consumer._thread._consumer is None:  # it still connects: a broker may take long to answer
            return
        seen = set()
        behind = 0
        for tp in consumer.assignment():
            newest, position = consumer.highwater(tp), consumer._read_offset.get(tp)
            if tp.topic not in TOPICS or newest is None:
                continue
            labels = (tp.topic, str(tp.partition))
            seen.add(labels)
            committed = consumer._committed_offset.get(tp)
            at = max((offset for offset in (position, committed) if offset is not None), default=0)
            self._metrics.lag.labels(*labels).set(max(0, newest - at))
            behind += max(0, newest - at)
        for labels in self._known - seen:
            self._metrics.lag.remove(*labels)
        self._known = seen
        self._metrics.behind = behind
