"""State is effectively once: whatever the batches, repeats and crashes, it is that of one pass over the events."""

from itertools import pairwise

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from models.fusion import Fusion
from models.recommend import Recommender
from state.arena import Arena
from state.events import TOPICS, EventBatch
from state.items import ItemIndex
from state.record import encode
from state.store import UserStore
from streams.compute import Compute
from streams.fetch import RecordBatch
from streams.metrics import Metrics
from streams.partition import Partition, flush_partition
from streams.restore import _load_records

T0 = 1_700_000_000_000


def states(partition):
    """Every user's record, as bytes."""
    store = partition.store
    users = sorted(user for user in store.arena.users if user is not None)
    return dict(zip(users, encode(store.arena.to_rows(store.arena.slots(users), store.index)), strict=True))


class Process:
    """One worker's life: recommender, item numbers and partition begin empty, state comes from the changelog."""

    def __init__(self, model, changelog, fused=False, **options):
        self.recommender = Recommender(ItemIndex(), k=4, fusion=Fusion() if fused else None, **options)
        if model is not None:
            self.recommender.swap(model)
        self.partition = Partition(
            3, UserStore(Arena(self.recommender.state_size, 4, capacity=1), self.recommender.items)
        )
        self.compute = Compute(self.recommender, Metrics(), 65_536)
        assert _load_records([(self.partition, batch) for batch in changelog]) == 0


class Worker:
    """Delivers a sequence of (user, item, kind, time_ms) events as Kafka would; changelog and log survive crashes.

    The log holds the events of each topic at offsets of their own, with gaps as transactions leave them.
    """

    def __init__(self, events, model, record_batch, read_records, **options):
        self.model, self.options = model, options
        self.record_batch, self.read_records = record_batch, read_records
        self.events, next_offset = [], [5, 0, 9]
        for number, (user, item, kind, time_ms) in enumerate(events):
            self.events.append((user, item, kind, next_offset[kind], time_ms))
            next_offset[kind] += 1 + (number % 7 == 3)
        self.changelog, self.position, self.committed = [], 0, 0
        self.process = Process(model, [], **options)

    def deliver(self, ranges):
        """One round: the events of each (start, stop), which may overlap, split by topic as fetched."""
        batches = []
        for start, stop in ranges:
            for kind, topic in enumerate(TOPICS):
                mine = [(u, i, offset, t) for u, i, k, offset, t in self.events[start:stop] if k == kind]
                if mine:
                    batches.append(self.record_batch(topic, mine))
        if batches:
            self.process.compute.round([(self.process.partition, batches)])

    def flush(self, commit, keep=1.0):
        """Write the changed users to the changelog, or only a share of them; commit after the whole of it."""
        flushed = flush_partition(self.process.partition, T0, None, False)
        records = [record for batch in flushed.batches for record in self.read_records(batch._build())]
        kept = records[: round(len(records) * keep)]
        start = self.changelog[-1].next_offset if self.changelog else 0
        if kept:
            self.changelog.append(
                RecordBatch(
                    "changelog", 3, list(range(start, start + len(kept))), [T0] * len(kept),
                    [record.key for record in kept], [record.value for record in kept], start + len(kept),
                )
            )  # fmt: skip
        if commit:
            self.committed = self.position

    def crash(self, back):
        """Lose the process; the next one gets events from the commit or earlier (a commit may be lost too)."""
        self.process = Process(self.model, self.changelog, **self.options)
        self.position = max(0, self.committed - back)


def one_pass(events, model, **options):
    """The same events in one batch through one recommender."""
    worker = Worker(events, model, None, None, **options)
    users, items, kinds, offsets, times = zip(*worker.events, strict=True)
    worker.process.recommender.advance(
        worker.process.partition.store,
        EventBatch(
            list(users), list(items), np.array(kinds, np.uint8), np.array(times, np.int64), np.array(offsets, np.int64),
            np.array(times, np.int64) + 11,
        ),
    )  # fmt: skip
    return states(worker.process.partition)


@st.composite
def streams(draw):
    """Events of several users: of all topics in event-time order, or of one topic with times in any order."""
    n = draw(st.integers(1, 90))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    users = [f"u{u}" for u in rng.integers(0, draw(st.integers(1, 5)), n)]
    items = [f"i{i}" for i in rng.integers(0, 26, n)]  # i20 and above are not in the vocabulary
    times = T0 + rng.integers(0, draw(st.sampled_from([5, 10**4, 10**8])), n)
    if draw(st.booleans()):
        kinds, times = rng.integers(0, 3, n), np.sort(times) + np.arange(n)
    else:
        kinds = np.full(n, draw(st.integers(0, 2)))
    return list(zip(users, items, kinds.tolist(), times.tolist(), strict=True))


steps = st.lists(
    st.one_of(
        st.tuples(st.just("deliver"), st.integers(0, 30), st.integers(0, 12)),  # how many, repeated from how far back
        st.tuples(st.just("twice"), st.integers(1, 20), st.integers(0, 12)),  # two overlapping fetches in one round
        st.tuples(st.just("flush"), st.booleans(), st.none()),  # whether its commit gets through
        st.tuples(st.just("crash"), st.integers(0, 40), st.sampled_from([0.0, 0.0, 0.3, 0.7, 1.0])),  # amid a flush
    ),
    max_size=14,
)


class Models(dict):
    """Models by name, with a short repr for failing examples."""

    def __repr__(self):
        return "models"


@pytest.fixture(scope="module")
def models(serving_model):
    return Models(none=None, gru=serving_model("gru", 8), odd=serving_model("gru", 5), lstm=serving_model("lstm", 4))


@pytest.mark.parametrize("name", ["none", "gru", "odd", "lstm"])
@pytest.mark.parametrize("fused", [False, True])
@given(
    events=streams(), plan=steps, latest=st.booleans(), exclude=st.sampled_from(["auto", "none", "purchased", "seen"])
)
@settings(max_examples=80, deadline=None, derandomize=True)
def test_state_is_that_of_one_pass(models, record_batch, read_records, name, fused, events, plan, latest, exclude):
    """Every user's record, bit for bit: batch splits, redelivery, partial flushes, lost commits, crashes."""
    worker = Worker(events, models[name], record_batch, read_records, latest_only=latest, exclude=exclude, fused=fused)
    for step, first, second in plan:
        if step == "crash":
            worker.flush(commit=False, keep=second)
            worker.crash(first)
        elif step == "flush":
            worker.flush(commit=first)
        else:
            start = max(0, worker.position - second)
            stop = min(len(events), worker.position + first)
            worker.deliver([(start, stop)] if step == "deliver" else [(worker.position, stop), (start, stop)])
            worker.position = stop
    worker.deliver([(worker.position, len(events))])
    expected = one_pass(events, models[name], latest_only=latest, exclude=exclude)
    assert states(worker.process.partition) == expected
    worker.position = len(events)
    worker.flush(commit=True)
    assert states(Process(models[name], worker.changelog).partition) == expected


@pytest.mark.parametrize("name", ["gru", "lstm"])
@given(events=streams(), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=25, deadline=None, derandomize=True)
def test_each_topic_may_be_redelivered_from_a_place_of_its_own(models, record_batch, read_records, name, events, seed):
    rng = np.random.default_rng(seed)
    worker = Worker(events, models[name], record_batch, read_records)
    flushed = int(rng.integers(0, len(events) + 1))
    worker.deliver([(0, flushed)])
    worker.flush(commit=True)
    worker.crash(0)
    from_place = rng.integers(0, flushed + 1, 3)  # committed offsets may lie anywhere before what was flushed
    again = [event for n, event in enumerate(worker.events) if n >= from_place[event[2]]]
    for start, stop in pairwise(sorted({0, len(again), *rng.integers(0, len(again) + 1, 3).tolist()})):
        batches = [
            record_batch(topic, [(u, i, offset, t) for u, i, k, offset, t in again[start:stop] if k == kind])
            for kind, topic in enumerate(TOPICS)
        ]
        worker.process.compute.round([(worker.process.partition, batches)])
    assert states(worker.process.partition) == one_pass(events, models[name])


def test_a_users_state_does_not_depend_on_the_other_users(models, record_batch, read_records):
    rng = np.random.default_rng(12)
    events = [
        (f"u{u}", f"i{i}", 1, T0 + n)
        for n, (u, i) in enumerate(zip(rng.integers(0, 7, 400), rng.integers(0, 20, 400), strict=True))
    ]
    together = one_pass(events, models["gru"])
    separate = {}
    log = Worker(events, models["gru"], record_batch, read_records).events
    for user in together:
        process = Process(models["gru"], [])
        mine = [(u, i, offset, t) for u, i, _, offset, t in log if u == user]
        process.compute.round([(process.partition, [record_batch("views", mine)])])
        separate |= states(process.partition)
    assert separate == together
