"""What the catalogue's entries do to titles and to the recommender, without a broker."""

import asyncio
import logging
from types import SimpleNamespace

import orjson
import pytest
from aiokafka import TopicPartition
from faust.types import TP

from models.recommend import Recommender
from state.items import ItemIndex
from streams.app import create_app
from streams.catalogue import _AT_ONCE, Catalogue
from streams.metrics import Metrics
from streams.pipeline import Pipeline
from streams.restore import Restored
from streams.settings import load_settings
from streams.titles import Titles
from streams.topics import ITEMS


@pytest.fixture
async def pipeline(tmp_path):
    pipeline = Pipeline(load_settings(state_dir=tmp_path), Recommender(ItemIndex(), k=3), Metrics())
    yield pipeline
    pipeline._thread.shutdown()


def blocked_by(pipeline):
    recommender = pipeline.recommender
    return {recommender.items.ids[number] for number in recommender.popularity.blocked.tolist()}


def entry(item_id, blocked=True):
    return orjson.dumps({"item_id": item_id, "blocked": blocked})


async def test_titles_come_from_the_catalogue_and_leave_with_a_tombstone(pipeline):
    titles = Titles()
    catalogue = Catalogue(load_settings(), pipeline, titles)
    catalogue._learn(b"i1", orjson.dumps({"item_id": "i1", "title": "<img src=x onerror=alert(1)>"}))
    catalogue._learn(b"i2", orjson.dumps({"title": "by its key"}))
    catalogue._learn(b"i3", orjson.dumps({"item_id": "i3", "title": "blocked", "blocked": True}))
    catalogue._learn(b"i4", b"{")
    catalogue._learn(b"i5", orjson.dumps(["i5"]))
    assert [titles.get(f"i{n}") for n in range(1, 6)] == [
        "<img src=x onerror=alert(1)>", "by its key", "blocked", None, None,
    ]  # fmt: skip
    catalogue._learn(b"i1", None)
    assert titles.get("i1") is None
    await catalogue._tell()
    assert blocked_by(pipeline) == {"i3"}


async def test_without_a_page_no_titles_are_kept_and_blocking_works(pipeline):
    catalogue = Catalogue(load_settings(), pipeline)
    catalogue._learn(b"i3", orjson.dumps({"item_id": "i3", "title": "blocked", "blocked": True}))
    await catalogue._tell()
    assert blocked_by(pipeline) == {"i3"}


async def test_a_catalogue_of_many_blocked_items_waits_for_few_rounds(pipeline, monkeypatch):
    catalogue, between_rounds, waits = Catalogue(load_settings(), pipeline), pipeline.between_rounds, []

    async def counted(*work):
        waits.append(work)
        return await between_rounds(*work)

    monkeypatch.setattr(pipeline, "between_rounds", counted)
    for number in range(10_000):
        catalogue._learn(None, entry(f"i{number}", number % 2 == 0))
    for _ in range(2):
        await catalogue._tell()
        assert blocked_by(pipeline) == {f"i{number}" for number in range(0, 10_000, 2)}
        assert len(waits) == 5_000 // _AT_ONCE


async def test_the_last_entry_of_an_item_counts(pipeline):
    catalogue = Catalogue(load_settings(), pipeline)
    for item_id, states in (("a", (True, False, True)), ("b", (True, False))):
        for blocked in states:
            catalogue._learn(None, entry(item_id, blocked))
    await catalogue._tell()
    assert blocked_by(pipeline) == {"a"}
    catalogue._learn(b"a", None)  # deleted
    await catalogue._tell()
    assert blocked_by(pipeline) == set()


async def test_unreadable_entries_are_passed_over(pipeline, caplog):
    catalogue = Catalogue(load_settings(), pipeline)
    with caplog.at_level(logging.WARNING):
        for value in (b"{", b"[]", entry(7), entry("")):
            catalogue._learn(None, value)
    catalogue._learn(b"c", b'{"blocked": true}')
    await catalogue._tell()
    assert blocked_by(pipeline) == {"c"}
    assert caplog.text.count("unreadable catalogue entry") == 2


class Reader:
    """A consumer of two partitions, of which only what is read so far and the end are asked for."""

    _isolation_level = "read_uncommitted"

    def __init__(self):
        self.ends, self.at = {}, {}

    def highwater(self, partition):
        return self.ends.get(partition.partition)

    async def position(self, partition):
        return self.at[partition.partition]


async def test_the_catalogue_is_known_once_it_was_read_to_the_end_it_had_at_first(pipeline):
    catalogue, reader = Catalogue(load_settings(), pipeline), Reader()
    partitions = [TopicPartition(ITEMS, number) for number in range(2)]
    assert not await catalogue._reached_end(reader, partitions)
    reader.ends, reader.at = {0: 5}, {0: 5, 1: 0}
    assert not await catalogue._reached_end(reader, partitions)  # of the other one nothing is known
    reader.ends = {0: 5, 1: 3}
    assert not await catalogue._reached_end(reader, partitions)
    reader.ends, reader.at = {0: 90, 1: 90}, {0: 6, 1: 3}  # entries that keep coming hold nobody up
    assert await catalogue._reached_end(reader, partitions)


async def test_a_catalogue_that_cannot_be_read_holds_a_worker_up_for_so_long_only(pipeline, monkeypatch, caplog):
    monkeypatch.setattr("streams.catalogue._PATIENCE_SECONDS", 0.01)
    await Catalogue(load_settings(), pipeline).known()
    assert "lists may hold blocked items" in caplog.text


async def nothing_shortened(*_about):
    return {}


async def test_a_worker_takes_no_partition_before_the_catalogue_is_known(tmp_path, monkeypatch):
    worker = create_app(load_settings(state_dir=tmp_path, _env_file=None))
    (catalogue,) = (service for service in worker.app.services if isinstance(service, Catalogue))
    assigned = []

    async def begin():
        pass

    async def assign(numbers):
        assigned.append(numbers)
        return Restored()

    worker.app.consumer = SimpleNamespace(
        begin=begin, assignment=lambda: {TP("clicks", 3), TP("forget-users", 4)}, seek_to_committed=None
    )
    monkeypatch.setattr(worker.pipeline, "assign", assign)
    monkeypatch.setattr("streams.app.shortened", nothing_shortened)
    rebalance = asyncio.create_task(worker.app.on_rebalance_complete.send())
    await asyncio.sleep(0.05)
    assert not assigned
    catalogue._caught_up.set()
    await rebalance
    assert assigned == [{3}]
    worker.pipeline._thread.shutdown()
