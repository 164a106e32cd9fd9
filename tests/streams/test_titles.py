import orjson
import pytest

from models.recommend import Recommender
from state.items import ItemIndex
from streams.catalogue import Catalogue
from streams.metrics import Metrics
from streams.pipeline import Pipeline
from streams.settings import load_settings
from streams.titles import LONGEST_TITLE, Titles


def test_the_newest_entry_counts_and_one_without_a_title_takes_it_away():
    titles = Titles()
    titles.learn("i1", "Alien")
    titles.learn("i1", "Aliens")
    assert titles.get("i1") == "Aliens"
    for no_title in (None, "", 7, ["Alien"], {"en": "Alien"}):
        titles.learn("i1", "Alien")
        titles.learn("i1", no_title)
        assert titles.get("i1") is None
    assert titles.get(None) is None


def test_number_and_length_are_bounded():
    titles = Titles(limit=100)
    for n in range(1_000):
        titles.learn(f"i{n}", "long" * 1_000)
    assert len(titles) == 100
    assert titles.get("i899") is None
    assert titles.get("i900") == ("long" * 1_000)[:LONGEST_TITLE]


@pytest.fixture
async def pipeline(tmp_path):
    pipeline = Pipeline(load_settings(state_dir=tmp_path), Recommender(ItemIndex(), k=3), Metrics())
    yield pipeline
    pipeline._thread.shutdown()


async def test_titles_come_from_the_catalogue_and_leave_with_a_tombstone(pipeline):
    titles = Titles()
    catalogue = Catalogue(load_settings(), pipeline, titles)
    await catalogue._learn(b"i1", orjson.dumps({"item_id": "i1", "title": "<img src=x onerror=alert(1)>"}))
    await catalogue._learn(b"i2", orjson.dumps({"title": "by its key"}))
    await catalogue._learn(b"i3", orjson.dumps({"item_id": "i3", "title": "blocked", "blocked": True}))
    await catalogue._learn(b"i4", b"{")
    await catalogue._learn(b"i5", orjson.dumps(["i5"]))
    assert [titles.get(f"i{n}") for n in range(1, 6)] == [
        "<img src=x onerror=alert(1)>", "by its key", "blocked", None, None,
    ]  # fmt: skip
    await catalogue._learn(b"i1", None)
    assert titles.get("i1") is None
    assert pipeline.recommender._blocked_numbers.tolist() == [pipeline.recommender.items.get("i3")]


async def test_without_a_page_no_titles_are_kept_and_blocking_works(pipeline):
    catalogue = Catalogue(load_settings(), pipeline)
    await catalogue._learn(b"i3", orjson.dumps({"item_id": "i3", "title": "blocked", "blocked": True}))
    assert pipeline.recommender._blocked_numbers.tolist() == [pipeline.recommender.items.get("i3")]
