import asyncio
import io
import time

import orjson
import pytest
from aiokafka import AIOKafkaProducer
from rich.console import Console

from streams.replay import partition_of
from streams.tail import follow, line, read_titles
from streams.topics import ITEMS, RECOMMENDATIONS


@pytest.fixture
def settings(contract_settings):
    return contract_settings


def message(user, items, model="v0001-00c0ffee"):
    return {
        "user_id": user,
        "items": [{"item_id": item, "score": 1.5} for item in items],
        "model_version": model,
        "event": {"topic": "views", "partition": 0, "offset": 3, "timestamp": 1_700_000_000_000},
        "generated_at": 1_700_000_000_500,
    }


def send(settings, topic, records):
    """Send (key, value) pairs, each to its key's partition; a value of None is a tombstone."""

    async def go():
        async with AIOKafkaProducer(bootstrap_servers=settings.brokers) as producer:
            for key, value in records:
                body = None if value is None else value if isinstance(value, bytes) else orjson.dumps(value)
                await producer.send_and_wait(
                    topic, body, key=key.encode(), partition=partition_of(key, settings.partitions)
                )

    asyncio.run(go())


def printed(settings, **options):
    text = io.StringIO()
    count = asyncio.run(follow(settings, console=Console(file=text, width=200), **options))
    lines = text.getvalue().splitlines()
    assert len(lines) == count
    return lines


def test_a_line_has_user_reason_titles_scores_and_model():
    text = line(message("ann", ["1", "2"]), {"1": "Toy Story"}).plain
    assert "ann viewed -> Toy Story (1.50), 2 (1.50)  [v0001-00c0ffee]" in text


def test_ids_and_titles_cannot_steer_the_terminal():
    text = line(message("\x1b[2Jann\n", ["1", "\x9b31m2"]), {"1": "Toy\x1b]0;mine\x07\nStory\u202e"}).plain
    assert text.isprintable()
    assert r"\x1b[2Jann\n viewed -> Toy\x1b]0;mine\x07\nStory\u202e (1.50), \x9b31m2 (1.50)" in text


def test_a_line_survives_an_incomplete_message():
    assert line({"user_id": "ann"}, {}).plain == "ann ? -> nothing  [None]"


@pytest.mark.broker
def test_titles_are_the_newest_and_tombstones_take_them_away(settings):
    send(
        settings,
        ITEMS,
        [
            ("1", {"item_id": "1", "title": "Old"}),
            ("2", {"item_id": "2", "title": "Gone"}),
            ("3", {"item_id": "3"}),
            ("4", b"not json"),
            ("1", {"item_id": "1", "title": "New"}),
            ("2", None),
        ],
    )
    assert asyncio.run(read_titles(settings)) == {"1": "New"}


@pytest.mark.broker
def test_from_the_earliest_with_titles_and_a_limit(settings):
    send(settings, ITEMS, [("1", {"item_id": "1", "title": "Toy Story"})])
    send(settings, RECOMMENDATIONS, [(f"u{n}", message(f"u{n}", ["1"])) for n in range(6)])
    lines = printed(settings, earliest=True, limit=4)
    assert len(lines) == 4
    assert all("viewed -> Toy Story (1.50)" in text for text in lines)


@pytest.mark.broker
def test_only_one_users(settings):
    send(settings, RECOMMENDATIONS, [(f"u{n % 5}", message(f"u{n % 5}", [str(n)])) for n in range(20)])
    lines = printed(settings, earliest=True, user="u3", limit=4)
    assert [text.split(" -> ")[1].split(" ")[0] for text in lines] == ["3", "8", "13", "18"]


@pytest.mark.broker
def test_latest_leaves_out_what_was_there_before(settings):
    send(settings, RECOMMENDATIONS, [("u1", message("u1", ["old"]))] * 3)
    time.sleep(0.01)

    async def follow_then_send():
        text = io.StringIO()
        task = asyncio.create_task(follow(settings, limit=1, console=Console(file=text, width=200)))
        async with AIOKafkaProducer(bootstrap_servers=settings.brokers) as producer:
            while not task.done():  # until it has found its place: what is sent before is "before" for it
                await producer.send_and_wait(
                    RECOMMENDATIONS,
                    orjson.dumps(message("u1", ["new"])),
                    partition=partition_of("u1", settings.partitions),
                )
                await asyncio.sleep(0.1)
        await task
        return text.getvalue()

    shown = asyncio.run(asyncio.wait_for(follow_then_send(), 20))
    assert "new (1.50)" in shown
    assert "old" not in shown
