from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from state.events import TOPICS
from state.pseudonyms import Pseudonyms
from streams.eraser import sweep
from streams.erasures import Ends, Erasures, input_ends
from streams.fetch import RecordBatch
from streams.forget_requests import read_requests
from streams.kafka import client_options
from streams.settings import Settings

FAR = 10**9


def asking(users: Sequence[str], first: int = 0) -> RecordBatch:
    n = len(users)
    offsets = list(range(first, first + n))
    return RecordBatch("forget-users", 1, offsets, [0] * n, [user.encode() for user in users], [b""] * n, first + n)


def known(users: Sequence[str]) -> dict[str, int]:
    return {user: 3 for user in users if user != "nobody"}


def kept(erasures: Erasures, user: str, kind: int, offset: int) -> bool:
    return bool(erasures.kept([user], np.array([kind], np.uint8), np.array([offset]))[0])


def test_nothing_of_the_user_counts_until_the_ends_are_known_and_then_only_what_follows_them() -> None:
    erasures = Erasures()
    assert not erasures.barring
    assert erasures.take(asking(["ann", "nobody"]), "first", known) == []
    assert [one.events for one in erasures.open()] == [3, None]
    assert [kept(erasures, "ann", kind, FAR) for kind in range(3)] == [False] * 3
    assert kept(erasures, "bob", 0, 0)
    erasures.found_ends(erasures.open(), (10, 20, 0))
    assert [kept(erasures, "ann", kind, offset) for kind, offset in ((0, 9), (0, 10), (1, 19), (1, 20), (2, 0))] == [
        False, True, False, True, True,
    ]  # fmt: skip


def test_receipts_wait_for_disk_ends_and_commits_and_tokens_for_the_requests_before() -> None:
    erasures = Erasures()
    erasures.take(asking(["ann"]), "first", known)
    erasures.take(asking(["bob"], first=1), "second", known)
    ann, bob = erasures.open()
    ends: Ends = (10, 0, 5)
    committed = {"clicks": 10, "views": 0, "purchases": 4}

    def passed(topic: str, partition: int) -> int:
        return committed[topic] if partition == 1 else 0

    erasures.found_ends([ann, bob], ends)
    assert erasures.ready(passed, 1) == []
    committed["purchases"] = 5
    assert erasures.ready(passed, 1) == []  # still on disk
    bob.durable = True
    assert erasures.ready(passed, 1) == [bob]
    assert erasures.ready(passed, 0) == []
    assert erasures.answered([bob]) == []  # the offset before it is not done with
    assert not kept(erasures, "ann", 0, 9)
    assert kept(erasures, "bob", 0, 9)
    assert erasures.answered([ann]) == ["first", "second"]
    assert (len(erasures), erasures.barring) == (0, False)


def test_a_user_who_asks_twice_is_barred_by_the_later_request() -> None:
    erasures = Erasures()
    erasures.take(asking(["ann"]), "first", known)
    erasures.found_ends(erasures.open(), (10, 10, 10))
    erasures.take(asking(["ann"], first=1), "second", known)
    assert not kept(erasures, "ann", 0, FAR)
    first, second = erasures.open()
    erasures.found_ends([second], (30, 10, 10))
    assert [kept(erasures, "ann", 0, offset) for offset in (29, 30)] == [False, True]
    assert erasures.untold() == ["ann"]
    assert erasures.untold() == []
    erasures.answered([first])
    assert not kept(erasures, "ann", 0, 29)


def test_a_request_delivered_twice_is_answered_once() -> None:
    erasures = Erasures()
    erasures.take(asking(["ann"]), "first", known)
    erasures.take(asking(["ann", "bob"]), "again", known)
    assert [one.request.user for one in erasures.open()] == ["ann", "bob"]
    ann, bob = erasures.open()
    assert erasures.answered([ann]) == ["first"]
    assert erasures.answered([bob]) == ["again"]


def test_snapshots_are_asked_for_at_once_and_then_not_too_often() -> None:
    erasures = Erasures()
    assert not erasures.snapshot_due(100.0)
    erasures.take(asking(["ann"]), "first", known)
    assert erasures.snapshot_due(100.0)
    assert [one.request.user for one in erasures.capture(100.0)] == ["ann"]
    assert not erasures.snapshot_due(200.0)
    erasures.take(asking(["bob"], first=1), "second", known)
    assert not erasures.snapshot_due(105.0)
    assert erasures.snapshot_due(110.0)
    assert [one.request.user for one in erasures.capture(106.0)] == ["bob"]  # one that was due anyway


def test_requests_that_name_nobody() -> None:
    keys: list[bytes | None] = [None, b"", b"x" * 257, b"\xff", b"x" * 256, "zo\u00eb".encode()]
    n = len(keys)
    requests, rejected = read_requests(RecordBatch("forget-users", 0, list(range(n)), [0] * n, keys, [None] * n, n))
    assert [(bad.position, bad.reason) for bad in rejected] == [
        (0, "missing-id"), (1, "missing-id"), (2, "oversized-id"), (3, "bad-id"),
    ]  # fmt: skip
    assert [(one.user, one.offset) for one in requests] == [("x" * 256, 4), ("zo\u00eb", 5)]


EVENTS = st.lists(st.tuples(st.sampled_from(["ann", "bob", "cid", "dot"]), st.integers(0, 2), st.integers(0, 9)))


@given(events=EVENTS, ends=st.lists(st.tuples(st.sampled_from(["ann", "bob"]), st.tuples(*[st.integers(0, 9)] * 3))))
def test_bars_agree_with_a_plain_loop(events: list[tuple[str, int, int]], ends: list[tuple[str, Ends]]) -> None:
    erasures = Erasures()
    for place, (user, end) in enumerate(ends):
        erasures.take(asking([user], first=place), place, known)
        erasures.found_ends([erasures.open()[-1]], end)
    users = [user for user, _, _ in events]
    kinds, offsets = np.array([k for _, k, _ in events], np.uint8), np.array([o for *_, o in events], np.int64)
    expected = [all(who != user or offset >= end[kind] for who, end in ends) for user, kind, offset in events]
    assert erasures.kept(users, kinds, offsets).tolist() == expected


def test_with_a_pseudonym_key_state_is_erased_by_name_and_events_are_known_by_id() -> None:
    pseudonyms, erasures = Pseudonyms("k" * 32), Erasures()
    name = pseudonyms.name("ann")
    erased: list[str] = []

    def erase(names: Sequence[str]) -> dict[str, int]:
        erased.extend(names)
        return {name: 4}

    erasures.take(asking(["ann"]), "token", erase, pseudonyms)
    assert (erased, erasures.untold()) == ([name], [name])
    assert [one.events for one in erasures.open()] == [4]
    assert not kept(erasures, "ann", 0, 5)
    assert "ann" not in pseudonyms._cache


def test_old_snapshots_and_unfinished_ones_are_swept(tmp_path: Path) -> None:
    for name in ("users-00001.snapshot", "users-00002.snapshot", ".users-00003.snapshot.tmp", "other"):
        (tmp_path / name).write_text("ann")
    now = (tmp_path / "other").stat().st_mtime
    assert sweep(tmp_path, now + 60) == []
    assert [path.name for path in sweep(tmp_path, now + 2 * 3600)] == [".users-00003.snapshot.tmp"]
    assert len(sweep(tmp_path, now + 21 * 3600)) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def test_snapshots_from_the_future_are_swept(tmp_path: Path) -> None:
    path = tmp_path / "users-00001.snapshot"
    path.write_text("ann")
    written = path.stat().st_mtime
    assert sweep(tmp_path, written - 60) == []  # clocks differ a little
    assert sweep(tmp_path, written - 3600) == [path]


@pytest.mark.broker
async def test_ends_of_the_input_topics(contract_settings: Settings) -> None:
    from aiokafka import AIOKafkaProducer

    async with AIOKafkaProducer(**client_options(contract_settings)) as producer:
        for number in range(5):
            await producer.send(TOPICS[1], b"x%d" % number, partition=2)
        await producer.flush()
    assert await input_ends(contract_settings, [2, 0]) == {2: (0, 5, 0), 0: (0, 0, 0)}
    assert await input_ends(contract_settings, []) == {}
