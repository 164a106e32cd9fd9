"""What the catalogue's entries do to the recommender, without a broker."""

import logging
from collections.abc import Callable
from typing import Any

import orjson
import pytest

from models.recommend import Recommender
from state.items import ItemIndex
from streams.catalogue import _AT_ONCE, Catalogue
from streams.settings import load_settings


class Rounds:
    """A pipeline between whose rounds work can be done, and how often that was asked for."""

    def __init__(self) -> None:
        self.recommender = Recommender(ItemIndex(), 10)
        self.waits = 0

    async def between_rounds(self, work: Callable[..., Any], *args: Any) -> Any:
        self.waits += 1
        return work(*args)


@pytest.fixture
def catalogue() -> Catalogue:
    return Catalogue(load_settings(), Rounds())


def told(catalogue: Catalogue) -> set[str]:
    recommender = catalogue._pipeline.recommender
    return {recommender.items.ids[number] for number in recommender.popularity.blocked.tolist()}


def entry(item_id: object, blocked: bool = True) -> bytes:
    return bytes(orjson.dumps({"item_id": item_id, "blocked": blocked}))


async def test_a_catalogue_of_many_blocked_items_waits_for_few_rounds(catalogue: Catalogue) -> None:
    for number in range(10_000):
        catalogue._learn(None, entry(f"i{number}", number % 2 == 0))
    await catalogue._tell()
    assert told(catalogue) == {f"i{number}" for number in range(0, 10_000, 2)}
    assert catalogue._pipeline.waits == 5_000 // _AT_ONCE
    await catalogue._tell()
    assert catalogue._pipeline.waits == 5_000 // _AT_ONCE


async def test_the_last_entry_of_an_item_counts(catalogue: Catalogue) -> None:
    for blocked in (True, False, True):
        catalogue._learn(None, entry("a", blocked))
    for blocked in (True, False):
        catalogue._learn(None, entry("b", blocked))
    await catalogue._tell()
    assert told(catalogue) == {"a"}
    catalogue._learn(b"a", None)  # deleted
    await catalogue._tell()
    assert told(catalogue) == set()


async def test_unreadable_entries_are_passed_over(catalogue: Catalogue, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        for value in (b"{", b"[]", entry(7), entry("")):
            catalogue._learn(None, value)
    catalogue._learn(b"c", b'{"blocked": true}')
    await catalogue._tell()
    assert told(catalogue) == {"c"}
    assert caplog.text.count("unreadable catalogue entry") == 2
