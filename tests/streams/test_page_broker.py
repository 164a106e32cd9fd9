"""The page of a real worker on a real broker: as an HTTP client and as headless Chromium see it."""

import asyncio
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import quote

import httpx
import orjson
import pytest

from streams.topics import ITEMS, RECOMMENDATIONS
from tests.streams.chromium import NEEDS_CHROMIUM, open_tab
from tests.streams.event_log import Record, event, event_log, partition_of
from tests.streams.worker_cluster import Cluster, open_cluster, publish_model
from tests.streams.worker_process import Worker, wait_for

pytestmark = [pytest.mark.broker]
HOSTILE = "<img src=x onerror=\"document.title='hacked'\">"
RESIDENT = 30


def catalogue(titles: Sequence[tuple[str, str]]) -> list[Record]:
    """Entries of the topic `items`."""
    now_ms = int(time.time() * 1000)
    return [
        Record(
            ITEMS, partition_of(item.encode()), item.encode(), orjson.dumps({"item_id": item, "title": title}), now_ms
        )
        for item, title in titles
    ]


@pytest.fixture(scope="module")
def served(embedded_broker: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Cluster, Worker]]:
    """A worker with a model and 3,000 events of 100 users, most of them cold; item i<n> is called Title <n>."""
    directory = tmp_path_factory.mktemp("page")
    publish_model(directory / "registry", items=60, seed=1)
    with open_cluster(embedded_broker, directory, f"page-{time.time_ns()}", directory / "registry") as cluster:
        worker = cluster.worker(max_resident_users=str(RESIDENT))
        titles = [(f"i{n}", f"Title {n}") for n in range(1, 60)]
        cluster.load(catalogue([*titles, (HOSTILE, HOSTILE)])).finish()
        cluster.produced.clear()  # `wait_committed` is about events
        worker.wait_ready(150)  # the first of a session may compile kernels
        now_ms = int(time.time() * 1000)
        events = event_log(3_000, users=100, items=60, seed=5)
        mine = [("i3", "views"), (HOSTILE, "clicks"), ("i5", "purchases")]
        for n, (item, topic) in enumerate(mine):
            events.append(event(topic, HOSTILE, item, now_ms + 1_000 * n))
            cluster.produce(events)  # one by one: topics are not ordered among each other
            events = []
            wait_for(lambda: worker.applied() == len(cluster.produced), 60, cluster.output)
        cluster.wait_committed()
        yield cluster, worker


def last_list(cluster: Cluster, user: str) -> tuple[list[str], str]:
    """The items of a user's newest recommendation, and the version that made it."""
    messages = [orjson.loads(one.value) for one in cluster.read(RECOMMENDATIONS) if one.key.decode() == user]
    return [item["item_id"] for item in messages[-1]["items"]], messages[-1]["model_version"]


def test_lookups_agree_with_what_was_sent(served: tuple[Cluster, Worker]) -> None:
    cluster, worker = served
    with httpx.Client(base_url=f"http://127.0.0.1:{worker.port}", timeout=10) as client:
        found = client.get(f"/api/users/{quote(HOSTILE, safe='')}").raise_for_status().json()
        assert [(one["item_id"], one["title"], one["kind"]) for one in found["history"]] == [
            ("i5", "Title 5", "purchase"), (HOSTILE, HOSTILE, "click"), ("i3", "Title 3", "view"),
        ]  # fmt: skip
        assert ([one["item_id"] for one in found["recommendations"]], found["model_version"]) == last_list(
            cluster, HOSTILE
        )
        known = cluster.state_records()
        tiers = set()
        for user, record in known.items():
            one = client.get(f"/api/users/{quote(user, safe='')}").raise_for_status().json()
            assert record is not None
            assert one["events"] == int.from_bytes(record[12:16], "little")
            assert one["partition"] == partition_of(user.encode())
            tiers.add(one["tier"])
        assert tiers == {"resident", "cold"}
        assert client.get("/api/users/nobody").status_code == 404
        overview = client.get("/api/overview").raise_for_status().json()
    assert overview["totals"]["events"] == len(cluster.produced)
    assert overview["totals"]["users_resident"] + overview["totals"]["users_cold"] == len(known)
    assert overview["samples"][-1]["number"] > 3
    assert overview["model_version"] == found["model_version"]
    assert HOSTILE not in worker.log.read_text()


@NEEDS_CHROMIUM
async def test_the_page_in_a_browser(served: tuple[Cluster, Worker], tmp_path: Path) -> None:
    cluster, worker = served
    site = f"http://127.0.0.1:{worker.port}"
    async with open_tab(tmp_path / "profile") as tab:
        await tab.open(f"{site}/")
        await tab.until("document.querySelector('#status')?.textContent === 'ready'")
        before = await tab.text("#events")
        assert before == f"{len(cluster.produced):,} since the start"
        load = cluster.load(event_log(1_500, users=100, items=60, seed=6), rate=500)
        await tab.until("parseFloat(document.querySelector('#rate').textContent) > 0")
        await tab.until(f"document.querySelector('#events').textContent !== {before!r}")
        await tab.until("/[0-9] m?s$/.test(document.querySelector('#p50').textContent)")
        await tab.until("document.querySelectorAll('#chart-hits .drawn').length >= 2")  # the model and popularity
        assert (await tab.text("#held"), await tab.text("#numbers")) == ("6 of 6", "0\u20135")
        await asyncio.to_thread(load.finish)
        for chart in ("hits", "rate", "latency", "lag"):
            assert await tab.value(f"document.querySelectorAll('#chart-{chart} .drawn').length"), chart
            assert ":" in await tab.value(f"document.querySelector('#chart-{chart} svg').getAttribute('aria-label')")

        await tab.value("document.querySelector('label[for=id]').control.focus()")
        await tab.type(HOSTILE)
        await tab.until("!document.querySelector('#user').hidden")
        assert await tab.text("#name") == HOSTILE
        assert await tab.texts("#history td:last-child") == ["Title 5 i5", f"{HOSTILE} {HOSTILE}", "Title 3 i3"]

        # Others pushed this user out to disk, where lists are not kept; the next event is shown without asking again.
        one_more = event("clicks", HOSTILE, "i7", int(time.time() * 1000) + 9_000)
        await asyncio.to_thread(cluster.produce, [one_more])
        await tab.until("document.querySelector('#history td:last-child').innerText === 'Title 7 i7'")
        items, version = await asyncio.to_thread(last_list, cluster, HOSTILE)
        titles = [f"Title {item[1:]} {item}" if item != HOSTILE else f"{HOSTILE} {HOSTILE}" for item in items]
        assert await tab.texts("#recommended li") == titles
        assert version in await tab.text("#made-by")
        assert await tab.value("document.images.length") == 0
        assert await tab.value("document.title") == "recstream worker"

        for width, height in ((1280, 800), (390, 844)):
            await tab.look(width, height, "dark")
            assert await tab.value("document.documentElement.scrollWidth") <= width
        assert tab.errors == []

        await tab.value("document.querySelector('#id').value = ''")
        await tab.value("document.querySelector('#id').focus()")
        await tab.type("nobody")
        await tab.until("document.querySelector('#answer').className === 'bad'")
        assert "No event of this user has been seen" in await tab.text("#answer")
        assert await tab.value("document.querySelector('#user').hidden")
        assert [error for error in tab.errors if "404" not in error] == []  # Chromium itself reports the status
        assert {url.split("?")[0].rsplit("/", 1)[0] for url in tab.requests if not url.startswith("data:")} == {
            site, f"{site}/api", f"{site}/api/users",
        }  # fmt: skip


@NEEDS_CHROMIUM
async def test_a_script_that_is_not_the_pages_own_does_not_run(served: tuple[Cluster, Worker], tmp_path: Path) -> None:
    _, worker = served
    async with open_tab(tmp_path / "profile") as tab:
        await tab.open(f"http://127.0.0.1:{worker.port}/")
        await tab.until("document.querySelector('#status')?.textContent === 'ready'")
        await tab.value(
            "(() => { const s = document.createElement('script');"
            " try { s.textContent = 'document.title = 1' } catch (e) { document.title = e.name }"
            " document.body.append(s); })()"
        )
        assert await tab.value("document.title") != "1"
        assert any("Content Security Policy" in error or "TrustedScript" in error for error in tab.errors), tab.errors
