import time

import numpy as np
import orjson
import pytest

from models.recommend import Recommender
from state.arena import Arena
from state.events import TOPICS
from state.items import ItemIndex
from state.pseudonyms import MIN_KEY_CHARACTERS, Pseudonyms
from state.record import decode
from state.store import UserStore
from streams.compute import Compute
from streams.fetch import RecordBatch
from streams.metrics import Metrics
from streams.partition import Partition, flush_partition

T0 = 1_700_000_000_000


class Rounds:
    """A compute stage with one partition."""

    def __init__(self, model=None, number=3, **options):
        self.recommender = Recommender(ItemIndex(), k=4, **options)
        if model is not None:
            self.recommender.swap(model)
        self.metrics = Metrics()
        self.compute = Compute(self.recommender, self.metrics, 65_536)
        self.partition = Partition(number, UserStore(Arena(self.recommender.state_size, 4), self.recommender.items))

    def __call__(self, *batches):
        (produced,) = self.compute.round([(self.partition, batches)])
        return produced

    def sample(self, name, **labels):
        return self.metrics.registry.get_sample_value(f"recstream_{name}", labels)


@pytest.fixture(scope="module")
def gru(serving_model):
    return serving_model()


@pytest.fixture
def messages(read_records):
    """The (key, parsed value) pairs of what a round would send."""
    return lambda produced: [
        (record.key, orjson.loads(record.value))
        for batch in produced.recommendations
        for record in read_records(batch._build())
    ]


def test_every_event_gets_one_message_that_names_it_and_its_user(gru, record_batch, messages):
    rounds = Rounds(gru)
    events = [(f"u{n % 5}", f"i{n % 20}", 100 + n, T0 + n) for n in range(40)]
    before_ms = int(time.time() * 1000)
    sent = messages(rounds(record_batch("purchases", events)))
    assert [key.decode() for key, _ in sent] == [user for user, *_ in events]
    for (user, _, offset, time_ms), (_, message) in zip(events, sent, strict=True):
        assert message["user_id"] == user
        assert message["event"] == {"topic": "purchases", "partition": 3, "offset": offset, "timestamp": time_ms}
        assert message["model_version"] == gru.name
        assert before_ms <= message["generated_at"] <= time.time() * 1000
        assert len(message["items"]) == 4
        scores = [entry["score"] for entry in message["items"]]
        assert scores == sorted(scores, reverse=True)


def test_topics_of_one_round_are_answered_in_the_order_of_event_time(gru, record_batch, messages):
    rounds = Rounds(gru)
    sent = messages(
        rounds(
            record_batch("clicks", [("u", "i1", 10, T0 + 1), ("u", "i2", 11, T0 + 5)]),
            record_batch("views", [("u", "i3", 4, T0), ("v", "i4", 5, T0 + 3), ("u", "i5", 6, T0 + 9)]),
            record_batch("clicks", [("v", "i6", 12, T0 + 7)]),
        )
    )
    assert [(message["event"]["topic"], message["event"]["offset"]) for _, message in sent] == [
        ("views", 4), ("clicks", 10), ("views", 5), ("clicks", 11), ("clicks", 12), ("views", 6),
    ]  # fmt: skip
    arena = rounds.partition.store.arena
    assert arena.offsets[arena.find("u")].tolist() == [11, 6, -1]


def test_bad_events_become_dead_letters_and_good_ones_beside_them_are_answered(gru, record_batch, messages):
    rounds = Rounds(gru)
    batch = record_batch("views", [("a", "i1", 5, T0), ("b", "i2", 6, T0), ("c", "i3", 8, T0)])
    values = [b"oops", batch.values[1], None]
    produced = rounds(RecordBatch("views", 3, batch.offsets, batch.timestamps, batch.keys, values, 9))
    assert [key for key, _ in messages(produced)] == [b"b"]
    assert messages(produced)[0][1]["event"]["offset"] == 6
    found = [(one.key, one.value, dict(one.headers)["source-offset"]) for one in produced.dead_letters]
    assert found == [(b"a", b"oops", b"5"), (b"c", b"", b"8")]
    rounds.compute.publish()
    assert rounds.sample("dead_letters_total", reason="bad-json") == 1
    assert rounds.sample("dead_letters_total", reason="empty") == 1
    assert rounds.sample("events_total", topic="views", outcome="rejected") == 2
    assert rounds.sample("events_total", topic="views", outcome="applied") == 1


def test_times_that_look_like_seconds_are_warned_of_once(record_batch, caplog):
    rounds = Rounds()
    rounds(record_batch("clicks", [("u1", "i1", 1, T0), ("u2", "i1", 2, 7)]))
    assert not caplog.records
    for offset in (3, 4):
        rounds(record_batch("clicks", [("u1", "i2", offset, T0 // 1000)]))
    assert [record.getMessage() for record in caplog.records] == [
        "timestamp 1700000000 is in 1970: it looks like seconds, the unit is milliseconds"
    ]


def test_a_round_of_bad_events_only(record_batch):
    rounds = Rounds()
    produced = rounds(RecordBatch("views", 3, [0, 1], [0, 0], [None, b"k"], [b"x", None], 2))
    assert (produced.recommendations, len(produced.dead_letters)) == ([], 2)
    assert len(rounds.partition.store) == 0


def test_a_redelivered_event_is_neither_answered_nor_applied_but_counted(gru, record_batch, messages):
    rounds = Rounds(gru)
    events = [("u", f"i{n}", n, T0 + n) for n in range(6)]
    rounds(record_batch("clicks", events[:4]))
    sent = messages(rounds(record_batch("clicks", events[2:])))
    assert [message["event"]["offset"] for _, message in sent] == [4, 5]
    assert rounds(record_batch("clicks", events)).recommendations == []
    rounds.compute.publish()
    assert rounds.sample("events_total", topic="clicks", outcome="applied") == 6
    assert rounds.sample("events_total", topic="clicks", outcome="duplicate") == 8
    assert rounds.sample("recommendations_total", model_version=gru.name) == 6


def test_records_that_wait_twice_in_one_round_are_applied_once(gru, record_batch, messages):
    """After a rebalance the records fetched before and those fetched again may stand in the queue together."""
    rounds = Rounds(gru)
    events = [("u", f"i{n}", n, T0 + n) for n in range(8)]
    sent = messages(rounds(record_batch("clicks", events[2:6]), record_batch("clicks", events[2:])))
    assert [message["event"]["offset"] for _, message in sent] == [2, 3, 4, 5, 6, 7]
    assert int(rounds.partition.store.arena.count[0]) == 6


def test_latest_only_sends_one_message_per_user_for_the_last_event(gru, record_batch, messages):
    rounds = Rounds(gru, latest_only=True)
    events = [(f"u{n % 3}", f"i{n}", n, T0 + n) for n in range(11)]
    sent = messages(rounds(record_batch("clicks", events)))
    assert [(message["user_id"], message["event"]["offset"]) for _, message in sent] == [
        ("u2", 8),
        ("u0", 9),
        ("u1", 10),
    ]
    rounds.compute.publish()
    assert rounds.sample("recommendations_total", model_version=gru.name) == 3
    assert rounds.sample("event_to_recommendation_seconds_count") == 3


def test_without_a_model_the_version_says_popularity(record_batch, messages):
    rounds = Rounds()
    rounds(record_batch("clicks", [(f"u{n}", "i1", n, T0) for n in range(5)]))
    ((_, message),) = messages(rounds(record_batch("clicks", [("new", "i2", 5, T0)])))
    assert message["model_version"] == "popularity"
    assert [entry["item_id"] for entry in message["items"]] == ["i1"]


def test_ids_that_need_escaping_and_any_alphabet_travel_whole(record_batch, messages):
    rounds = Rounds(exclude="none")
    users = ['quote"', "back\\slash", "new\nline", "zoë", "日本", "😀" * 64, "\x00", "x" * 256, " "]
    rounds(record_batch("clicks", [(user, user + "-item", n, T0) for n, user in enumerate(users) if len(user) < 200]))
    sent = messages(rounds(record_batch("views", [(user, "i", n, T0) for n, user in enumerate(users)])))
    assert [key.decode() for key, _ in sent] == users
    assert [message["user_id"] for _, message in sent] == users
    assert all(len(message["items"]) == 4 for _, message in sent)


def test_metrics_are_published_every_few_thousand_events_and_on_demand(gru, record_batch):
    rounds = Rounds(gru)
    events = [(f"u{n % 7}", "i1", n, T0 + n) for n in range(5_000)]
    rounds(record_batch("clicks", events[:4_000]))
    assert rounds.sample("events_total", topic="clicks", outcome="applied") is None
    rounds(record_batch("clicks", events[4_000:]))
    assert rounds.sample("events_total", topic="clicks", outcome="applied") == 5_000
    assert rounds.sample("batch_events_count") == 2
    assert rounds.sample("event_to_recommendation_seconds_count") == 5_000
    assert rounds.sample("compute_seconds_total") > 0
    assert rounds.sample("live_tested_total", model_version=gru.name) == 5_000 - 7
    rounds.compute.publish()  # nothing new: nothing counted twice
    assert rounds.sample("events_total", topic="clicks", outcome="applied") == 5_000


def test_latency_is_measured_from_the_kafka_timestamp_and_never_negative(gru, record_batch):
    rounds = Rounds(gru)
    now_ms = int(time.time() * 1000)
    batch = record_batch("clicks", [("u", "i1", 0, T0), ("u", "i2", 1, T0)])
    rounds(RecordBatch("clicks", 3, batch.offsets, [now_ms - 3_000, now_ms + 60_000], batch.keys, batch.values, 2))
    rounds.compute.publish()
    assert rounds.sample("event_to_recommendation_seconds_sum") == pytest.approx(3, abs=1)
    assert rounds.sample("event_to_recommendation_seconds_bucket", le="0.0005") == 1


def test_ranks_of_lists_an_earlier_version_made_are_counted_under_its_name(gru, serving_model, record_batch):
    rounds = Rounds(gru)
    rounds(record_batch("clicks", [("u", "i1", 0, T0)]))
    rounds.compute.publish()
    newer = serving_model(seed=3, fingerprint=78)
    rounds.recommender.swap(newer)
    rounds(record_batch("clicks", [("u", "i2", 1, T0), ("u", "i3", 2, T0)]))
    rounds.compute.publish()
    assert rounds.sample("live_tested_total", model_version=gru.name) == 1
    assert rounds.sample("live_tested_total", model_version=newer.name) == 1
    assert rounds.sample("rehydrations_total") == 1


def test_a_round_of_several_partitions_does_what_rounds_of_each_do(gru, record_batch, messages):
    """Bad records, redelivered ones, partitions with nothing new, users of the same name: each stays where it was."""
    rng = np.random.default_rng(7)
    together, apart = Rounds(gru, exclude="none"), Rounds(gru, exclude="none")
    parts = [
        together.partition,
        *(Partition(n, UserStore(Arena(gru.state_size, 4), together.recommender.items)) for n in (0, 9)),
    ]
    others = [
        apart.partition,
        *(Partition(n, UserStore(Arena(gru.state_size, 4), apart.recommender.items)) for n in (0, 9)),
    ]
    offsets = [[0] * 3 for _ in parts]
    for size in (1, 40, 7, 40, 3):
        waiting = []
        for place, kinds in enumerate(((0, 1), (2,), (1, 2))):
            batches = []
            for kind in kinds:
                start = max(0, offsets[place][kind] - 2)  # two are delivered again
                stop = offsets[place][kind] = start + size
                rows = [
                    (f"u{rng.integers(9)}", f"i{rng.integers(20)}", n, T0 + 3 * n + kind) for n in range(start, stop)
                ]
                batch = record_batch(TOPICS[kind], rows)
                batch.values[size // 2] = b"oops" if size == 7 else batch.values[size // 2]
                batches.append(batch)
            waiting.append(batches)
        made = together.compute.round(list(zip(parts, waiting, strict=True)))
        each = [apart.compute.round([(part, batches)])[0] for part, batches in zip(others, waiting, strict=True)]
        for one, other in zip(made, each, strict=True):
            assert [(letter.value, letter.headers) for letter in one.dead_letters] == [
                (letter.value, letter.headers) for letter in other.dead_letters
            ]
            mine, theirs = messages(one), messages(other)
            assert [(key, value["event"]) for key, value in mine] == [(key, value["event"]) for key, value in theirs]
            for (_, a), (_, b) in zip(mine, theirs, strict=True):
                assert [entry["score"] for entry in a["items"]] == pytest.approx(
                    [entry["score"] for entry in b["items"]], abs=2e-4
                )
    for part, other in zip(parts, others, strict=True):
        users = part.store.arena.users
        assert users == other.store.arena.users
        slots = np.arange(len(users), dtype=np.int32)
        rows, expected = (one.store.arena.to_rows(slots, one.store.index) for one in (part, other))
        assert rows.tobytes() == expected.tobytes()


def test_state_knows_pseudonyms_and_messages_know_ids(gru, record_batch, messages, read_records):
    names = Pseudonyms("k" * MIN_KEY_CHARACTERS)
    keyed, plain = Rounds(gru), Rounds(gru)
    keyed.compute = Compute(keyed.recommender, keyed.metrics, 65_536, names)
    keyed.partition.user_key = names.fingerprint
    events = [(f"user {n % 5}", f"i{n % 20}", 100 + n, T0 + n) for n in range(40)]
    sent, expected = (messages(rounds(record_batch("clicks", events))) for rounds in (keyed, plain))
    for (key, message), (plain_key, plain_message) in zip(sent, expected, strict=True):
        assert key == plain_key
        assert {**message, "generated_at": 0} == {**plain_message, "generated_at": 0}
    flushed = flush_partition(keyed.partition, T0, None, snapshot=True)
    records = [record for batch in flushed.batches for record in read_records(batch._build())]
    assert {record.key.decode() for record in records} == {names.name(f"user {n}") for n in range(5)}
    rows, bad = decode([record.value for record in records], keyed.recommender.state_size)
    assert set(rows["user_key"].tolist()) == {names.fingerprint}
    assert not bad.any()
    assert flushed.snapshot.copy()
    assert set(flushed.snapshot.users) == {names.name(f"user {n}") for n in range(5)}


def test_every_version_that_served_between_two_flushes_is_counted_by_its_name(serving_model, record_batch):
    versions = [serving_model(seed=seed, fingerprint=70 + seed) for seed in range(3)]
    rounds = Rounds()
    for n, version in enumerate(versions):
        rounds.recommender.swap(version)
        rounds(record_batch("clicks", [("u", "i1", 2 * n, T0)]))
        rounds(record_batch("clicks", [("u", "i2", 2 * n + 1, T0)]))
    rounds.compute.publish()
    assert set(rounds.metrics.live) == {version.name for version in versions}
