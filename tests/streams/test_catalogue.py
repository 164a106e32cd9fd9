"""What the catalogue's entries do to titles and to the recommender, without a broker."""

import logging

import orjson
import pytest

from models.recommend import Recommender
from state.items import ItemIndex
from streams.catalogue import _AT_ONCE, Catalogue
from streams.metrics import Metrics
from streams.pipeline import Pipeline
from streams.settings import load_settings
from streams.titles import Titles


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
