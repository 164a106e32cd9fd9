"""The lag's look at a consumer, at any point of its life."""

from types import SimpleNamespace

from faust.types import TP

from streams.lag import LagWatch
from streams.metrics import Metrics

CLICKS = TP("clicks", 0)


class Consumer:
    """As Faust's: asked for its assignment before its thread has connected, it raises."""

    def __init__(self):
        self._thread = SimpleNamespace(_consumer=None)
        self._read_offset, self._committed_offset = {CLICKS: 5}, {CLICKS: 7}

    def assignment(self):
        if self._thread._consumer is None:
            raise RuntimeError("Consumer thread not yet started")
        return {CLICKS, TP("forget-users", 0)}

    def highwater(self, _tp):
        return 10


def test_a_worker_that_waits_for_its_broker_is_not_ended_by_a_look_at_its_lag():
    consumer, metrics = Consumer(), Metrics()
    watch = LagWatch(SimpleNamespace(consumer=consumer), metrics)
    watch._look()
    assert metrics.behind is None
    consumer._thread._consumer = object()
    watch._look()
    assert metrics.behind == 3
