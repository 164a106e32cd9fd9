"""What workers tell each other counts once, whatever becomes of the worker that told it; without a broker."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest

from models.fusion import Fusion
from models.recommend import Recommender
from models.transition_rows import NEXT
from models.transitions import Transitions
from state.items import ItemIndex
from streams.exchange import TransitionExchange
from streams.settings import load_settings

ITEMS = [f"i{n}" for n in range(12)]


class Topic:
    """The shared topic, and the turns that a pipeline gives."""

    def __init__(self):
        self.messages, self.sent = [], 0

    async def between_rounds(self, work, *args):
        return work(*args)

    async def send(self, *_args):
        self.sent += 1


class Life:
    """A worker from its start to its end, on the directory of those before."""

    def __init__(self, topic, directory):
        settings = load_settings(state_dir=directory, _env_file=None)
        self.fusion, self.items, self.topic = Fusion(Transitions(capacity=64)), ItemIndex(), topic
        pipeline = SimpleNamespace(
            recommender=Recommender(self.items, 3, fusion=self.fusion),
            between_rounds=topic.between_rounds,
            send=topic.send,
        )
        self.exchange = TransitionExchange(settings, pipeline, self.fusion, 0)
        self.exchange._path.parent.mkdir(parents=True, exist_ok=True)
        self.exchange._load()

    def learn(self, rng, truth, count=20):
        for _ in range(count):
            pair = tuple(rng.choice(ITEMS, 2).tolist())
            before, after = self.items.numbers(pair)
            self.fusion.transitions.learn(np.array([[before]], np.int32), np.ones(1, np.int32), np.array([after]))
            truth[pair] += 1

    def export(self):
        self.topic.messages += self.exchange._deltas()

    def keep(self):
        self.exchange._save(self.exchange._capture())

    def read(self):
        start = max(self.exchange._position, 0)
        for offset, (key, message) in enumerate(self.topic.messages[start:], start):
            if self.exchange._is_new(key):
                self.exchange._merge(key, message)
            self.exchange._position = offset + 1

    @property
    def counted(self):
        arrays, ids = self.fusion.transitions.arrays, self.items.ids
        return Counter(
            {
                (ids[row], ids[arrays.items[row, slot]]): round(float(arrays.counts[row, slot, NEXT]))
                for row in range(1, len(ids))
                for slot in range(int(arrays.used[row]))
                if arrays.counts[row, slot, NEXT]
            }
        )


@pytest.mark.parametrize("lives", [2, 5])
@pytest.mark.parametrize("read_back", [False, True])
@pytest.mark.parametrize("sent_behind", [False, True])
def test_a_worker_that_is_killed_counts_every_transition_it_had_sent_once(tmp_path, lives, read_back, sent_behind):
    topic, rng, truth = Topic(), np.random.default_rng(1), Counter()
    other = Life(topic, tmp_path / "other")
    for _ in range(lives):
        worker = Life(topic, tmp_path / "worker")
        for _ in range(2):
            worker.learn(rng, truth)
            other.learn(rng, truth)
            worker.export()
            other.export()
            if read_back:
                worker.read()
        worker.keep()
        if sent_behind:
            worker.learn(rng, truth)
            worker.export()
    worker = Life(topic, tmp_path / "worker")
    for one in (worker, other):
        one.read()
        assert one.counted == truth


def test_a_copy_kept_at_a_stop_waits_for_the_one_under_way(tmp_path, caplog):
    topic, rng, truth = Topic(), np.random.default_rng(1), Counter()
    worker = Life(topic, tmp_path)
    worker.learn(rng, truth)
    with ThreadPoolExecutor() as threads:
        list(threads.map(lambda _: worker.keep(), range(50)))
    assert not caplog.records


def test_workers_that_share_a_number_do_not_spoil_each_others_copy(tmp_path, caplog):
    topic, rng, truth = Topic(), np.random.default_rng(1), Counter()
    workers = [Life(topic, tmp_path) for _ in range(2)]
    for worker in workers:
        worker.learn(rng, truth)
        worker.export()
        worker.read()

    def keep(worker):
        for _ in range(50):
            worker.keep()

    with ThreadPoolExecutor() as threads:
        list(threads.map(keep, workers))
    assert not caplog.records
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["transitions-0.npz"]
    again = Life(topic, tmp_path)
    again.read()
    assert again.counted == truth


async def test_what_is_not_sent_at_a_stop_is_sent_by_the_next_life_only(tmp_path, monkeypatch):
    topic, rng, truth = Topic(), np.random.default_rng(1), Counter()
    worker, other = Life(topic, tmp_path / "worker"), Life(topic, tmp_path / "other")
    worker.exchange._loaded = True
    worker.learn(rng, truth)

    async def stopped(_seconds):
        await worker.exchange.on_stop()
        worker.exchange._stopped.set()

    monkeypatch.setattr(worker.exchange, "sleep", stopped)
    await TransitionExchange._export.fun(worker.exchange)
    assert not topic.sent
    worker = Life(topic, tmp_path / "worker")
    worker.export()
    for one in (worker, other):
        one.read()
        assert one.counted == truth


def test_a_copy_of_an_earlier_release_is_taken_and_its_messages_are_read(tmp_path):
    topic, rng, truth = Topic(), np.random.default_rng(1), Counter()
    worker = Life(topic, tmp_path)
    worker.learn(rng, truth)
    worker.exchange._position = 0
    arrays = worker.exchange._capture()
    del arrays["lives"], arrays["messages"]
    worker.exchange._save(arrays)
    earlier = Life(topic, tmp_path / "earlier")
    earlier.learn(rng, truth)
    topic.messages = [(key[:16], message) for key, message in earlier.exchange._deltas()]
    worker = Life(topic, tmp_path)
    worker.read()
    assert worker.counted == truth


@pytest.mark.parametrize("message", [None, b"", b"RSX1"])
def test_what_is_no_message_is_passed_over(tmp_path, caplog, message):
    worker = Life(Topic(), tmp_path)
    worker.exchange._merge(None, message)
    assert "unreadable" in caplog.text
    assert not worker.counted
