import numpy as np

from state.events import TOPICS
from streams.fetch import RecordBatch
from streams.round_events import round_events

NOW = 2_000


def batch(partition, kind, times, first_offset=0, bad=()):
    values = [b'{"user_id":"u%d","item_id":"i","timestamp":%d}' % (time, time) for time in times]
    for n in bad:
        values[n] = b"oops"
    offsets = list(range(first_offset, first_offset + len(times)))
    return RecordBatch(
        TOPICS[kind],
        partition,
        offsets,
        [time + 7 for time in times],
        [None] * len(times),
        values,
        first_offset + len(times),
    )


def test_order_follows_time_within_a_partition_but_never_reorders_a_topic():
    rng = np.random.default_rng(5)
    for _ in range(50):
        waiting, sizes = [], []
        for partition in range(int(rng.integers(1, 4))):
            batches, next_offset = [], [0, 0, 0]
            for kind in rng.integers(0, 3, rng.integers(1, 6)).tolist():
                batches.append(
                    batch(partition, kind, rng.integers(0, 50, rng.integers(0, 8)).tolist(), next_offset[kind])
                )
                next_offset[kind] += len(batches[-1])
            waiting.append(batches)
            sizes.append(next_offset)
        found = round_events(waiting, NOW, 1_000)
        events = found.batch
        assert found.bounds == [0, *np.cumsum([sum(size) for size in sizes]).tolist()]
        assert [f"u{time_ms}" for time_ms in events.times_ms.tolist()] == events.users
        assert (events.touched_ms == events.times_ms + 7).all()
        for place, size in enumerate(sizes):
            part = slice(found.bounds[place], found.bounds[place + 1])
            clock, latest = [], {}
            for kind, time_ms in zip(events.kinds[part].tolist(), events.times_ms[part].tolist(), strict=True):
                latest[kind] = max(time_ms, latest.get(kind, 0))
                clock.append(latest[kind])
            assert clock == sorted(clock)
            for kind in range(3):
                assert events.offsets[part][events.kinds[part] == kind].tolist() == list(range(size[kind]))


def test_ties_between_topics_keep_the_order_of_arrival():
    found = round_events([[batch(0, 2, [5, 6]), batch(0, 0, [5, 6]), batch(0, 1, [4])]], NOW, 1_000).batch
    topics = [TOPICS[kind] for kind in found.kinds.tolist()]
    assert list(zip(topics, found.times_ms.tolist(), strict=True)) == [
        ("views", 4), ("purchases", 5), ("clicks", 5), ("purchases", 6), ("clicks", 6),
    ]  # fmt: skip


def test_of_ties_in_event_time_the_one_that_kafka_had_first_comes_first():
    clicks, views = batch(0, 0, [5, 5, 5]), batch(0, 1, [5, 5])
    clicks.timestamps[:], views.timestamps[:] = [10, 14, 12], [11, 13]
    found = round_events([[clicks, views]], NOW, 1_000).batch
    topics = [(TOPICS[kind], offset) for kind, offset in zip(found.kinds.tolist(), found.offsets.tolist(), strict=True)]
    assert topics == [("clicks", 0), ("views", 0), ("views", 1), ("clicks", 1), ("clicks", 2)]


def test_a_rejected_record_is_found_in_its_batch_and_the_others_keep_their_offsets():
    waiting = [
        [batch(4, 0, [1, 2, 3], 10, bad=[1])],
        [batch(6, 1, [], 5), batch(6, 2, [4, 5], 20, bad=[0]), batch(6, 1, [6], 5)],
    ]
    found = round_events(waiting, NOW, 1_000)
    assert [(place, one.topic, bad.position, bad.reason) for place, one, bad in found.rejected] == [
        (0, "clicks", 1, "bad-json"), (1, "purchases", 0, "bad-json"),
    ]  # fmt: skip
    assert found.batch.offsets.tolist() == [10, 12, 21, 5]
    assert found.bounds == [0, 2, 4]
