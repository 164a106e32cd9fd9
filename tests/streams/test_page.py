"""The page's endpoints over HTTP, beside a pipeline with users of its own and no broker."""

import asyncio
import re
import socket
from base64 import b64encode
from hashlib import sha256
from urllib.parse import quote

import aiohttp
import numpy as np
import orjson
import pytest
from yarl import URL

from models.recommend import Recommender
from state.items import ItemIndex
from streams.app import create_app
from streams.compute import Compute
from streams.http import HttpServer
from streams.metrics import Metrics
from streams.overview import Overview
from streams.page import Page, is_loopback
from streams.pipeline import Pipeline
from streams.replay import partition_of
from streams.settings import load_settings
from streams.titles import Titles
from streams.user_lookup import _MOST_AT_ONCE, UserLookup

HOSTILE = "<img src=x onerror=alert(1)>"
ODD_IDS = [
    HOSTILE, "a/b", "a%2Fb", "50%", "?x=1#y", "..%2f..", "ünï", "日本", " ", "a+b", "\x00", "\n", "'\"", "a\\b", "..."
]  # fmt: skip


class Site:
    """A worker's HTTP server and what is behind it."""

    def __init__(self, port, directory, **settings):
        self.settings = load_settings(http_port=port, state_dir=directory, partitions=4, top_k=3, **settings)
        self.metrics, self.titles, self.port = Metrics(), Titles(), port
        self.pipeline = Pipeline(self.settings, Recommender(ItemIndex(), k=3), self.metrics)
        self.overview = Overview(self.metrics, self.pipeline)
        self.lookup = UserLookup(self.pipeline, self.titles, self.overview.version_of)
        self.page = Page(self.settings, self.pipeline, self.overview, self.lookup)
        self.server = HttpServer("127.0.0.1", port, self.metrics, self.pipeline, self.page.routes())
        self.pipeline.ready = True

    def hold(self, *numbers):
        self.pipeline._held.add(numbers)

    async def get(self, path, host=None):
        """Status, headers, body; the path as it stands, already quoted."""
        headers = {} if host is None else {"Host": host}
        url = URL(f"http://127.0.0.1:{self.port}{path}", encoded=True)
        async with self.session.get(url, headers=headers) as reply:
            return reply.status, reply.headers, await reply.read()

    async def user(self, user_id):
        status, _, body = await self.get("/api/users/" + quote(user_id, safe=""))
        return status, orjson.loads(body)

    async def __aenter__(self):
        await self.server.start()
        self.session = aiohttp.ClientSession()
        return self

    async def __aexit__(self, *_):
        await self.session.close()
        await self.server.stop()
        self.pipeline._thread.shutdown()
        self.pipeline._held.close()


@pytest.fixture
def open_site(tmp_path):
    def build(**settings):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        return Site(port, tmp_path, **settings)

    return build


@pytest.fixture
def feed(record_batch):
    """Lets a site process (user, item) events, one a second, on the partitions they belong to."""

    def apply(site, topic, events):
        compute = Compute(site.pipeline.recommender, site.metrics, 65_536)
        for number in range(4):
            rows = [
                (user, item, place, 1_700_000_000_000 + 1000 * place)
                for place, (user, item) in enumerate(events)
                if partition_of(user, 4) == number
            ]
            if rows and number in site.pipeline.partitions:
                compute.round([(site.pipeline.partitions[number], [record_batch(topic, rows, number)])])
        compute.publish()

    return apply


def contents(site):
    """Everything a lookup must leave as it is."""
    return [
        (len(part.store), list(part.store.arena.users), part.store.cold, part.store.arena.count.sum())
        for part in site.pipeline.partitions.values()
    ], list(site.pipeline.recommender.items.ids)


async def test_a_user_has_history_and_list_by_title(open_site, feed):
    async with open_site() as site:
        site.hold(0, 1, 2, 3)
        site.overview.sample()
        site.titles.learn("i1", "Alien")
        site.titles.learn("i9", HOSTILE)
        feed(site, "views", [("bob", "i9"), ("bob", "i2"), ("bob", "i3")])
        feed(site, "views", [("ann", "i1"), ("ann", "i2")])
        before = contents(site)
        status, ann = await site.user("ann")
        assert status == 200
        partition = partition_of("ann", 4)
        assert (ann["user_id"], ann["partition"], ann["tier"], ann["events"]) == ("ann", partition, "resident", 2)
        assert [(entry["item_id"], entry["title"], entry["kind"]) for entry in ann["history"]] == [
            ("i2", None, "view"), ("i1", "Alien", "view"),
        ]  # fmt: skip
        assert ann["history"][0]["at"] - ann["history"][1]["at"] == 1_000
        store = site.pipeline.partitions[partition].store
        shown = store.arena.recs[store.arena.find("ann")]
        ids = store.index.ids
        assert [entry["item_id"] for entry in ann["recommendations"]] == [ids[n] for n in shown.tolist() if n]
        assert {"item_id": "i9", "title": HOSTILE} in ann["recommendations"]
        assert ann["model_version"] == "popularity"
        assert contents(site) == before


async def test_ids_of_any_kind_are_found_under_the_name_they_have(open_site, feed):
    async with open_site() as site:
        site.hold(0, 1, 2, 3)
        feed(site, "clicks", [(user, user) for user in ODD_IDS])
        for user in ODD_IDS:
            status, found = await site.user(user)
            assert (status, found.get("user_id")) == (200, user), user
            assert found["history"][0]["item_id"] == user
        for path in ("%FF", "%ED%A0%80", "%", "a%2", "x" * 5_000):  # no such users, and no failure either
            assert (await site.get(f"/api/users/{path}"))[0] in (400, 404), path


async def test_an_unknown_user_is_not_created_and_their_place_is_told(open_site, feed):
    async with open_site() as site:
        site.hold(1, 3)
        feed(site, "clicks", [(f"u{n}", "i1") for n in range(20)])
        before = contents(site)
        seen = set()
        for user in (f"nobody{n}" for n in range(40)):
            number = partition_of(user, 4)
            status, told = await site.user(user)
            assert (status, told["partition"], told["partitions"]) == (404, number, [1, 3])
            if number in (1, 3):
                assert "No event of this user has been seen" in told["error"]
            else:
                assert f"belongs to partition {number}, which this worker does not hold" in told["error"]
                assert f"port {site.port} + i" in told["fix"]
            seen.add(number)
        assert seen == {0, 1, 2, 3}
        assert contents(site) == before


async def test_a_user_whom_another_partitioner_sent_here_is_found(open_site, record_batch):
    async with open_site() as site:
        site.hold(0, 1, 2, 3)
        elsewhere = (partition_of("ann", 4) + 1) % 4
        compute = Compute(site.pipeline.recommender, site.metrics, 65_536)
        compute.round([(site.pipeline.partitions[elsewhere], [record_batch("clicks", [("ann", "i1", 0, 10**12)])])])
        status, ann = await site.user("ann")
        assert (status, ann["partition"]) == (200, elsewhere)


async def test_cold_users_are_found_and_stay_cold(open_site, feed):
    async with open_site(max_resident_users=40) as site:
        site.hold(0, 1, 2, 3)
        users = [f"u{n}" for n in range(200)]
        feed(site, "purchases", [(user, "i1") for user in users])
        for part in site.pipeline.partitions.values():
            part.store.arena.dirty[:] = False
            part.store.evict()
        before = contents(site)
        tiers = []
        for user in users:
            status, found = await site.user(user)
            assert (status, found["events"], found["history"][0]["item_id"]) == (200, 1, "i1")
            tiers.append(found["tier"])
            if found["tier"] == "cold":
                assert (found["recommendations"], found["model_version"]) == ([], None)
        assert tiers.count("cold") >= 150
        assert "resident" in tiers
        assert contents(site) == before


async def test_a_worker_that_restores_says_so(open_site, feed):
    async with open_site() as site:
        site.hold(0, 1, 2, 3)
        feed(site, "clicks", [("ann", "i1")])
        site.pipeline.ready = False
        status, told = await site.user("ann")
        assert status == 503
        assert "restoring" in told["error"]


async def test_lookups_wait_for_the_round_and_do_not_pile_up(open_site, feed, monkeypatch):
    monkeypatch.setattr("streams.user_lookup._PATIENCE_SECONDS", 0.3)
    async with open_site() as site:
        site.hold(0, 1, 2, 3)
        feed(site, "clicks", [("ann", "i1")])
        read = []
        real = site.lookup._read
        site.lookup._read = lambda user: read.append(site.pipeline._turn.locked()) or real(user)
        async with site.pipeline._turn:  # a long round
            answers = await asyncio.gather(*(site.user("ann") for _ in range(3 * _MOST_AT_ONCE)))
            assert {status for status, _ in answers} == {503}
            assert read == []
            assert (await site.get("/api/overview"))[0] == 200  # the loop is free
        for _ in range(100):
            if len(read) == _MOST_AT_ONCE:
                break
            await asyncio.sleep(0.01)
        assert read == [True] * _MOST_AT_ONCE  # those that had been let in read in their turn, alone
        assert (await site.user("ann"))[0] == 200


async def test_the_overview_tells_state_and_samples(open_site, feed):
    async with open_site() as site:
        site.hold(0, 2)
        site.overview.sample()
        feed(site, "clicks", [("ann", "i1"), ("bob", "i1")] * 3)
        site.overview.sample()
        status, headers, body = await site.get("/api/overview")
        assert (status, headers["Content-Type"]) == (200, "application/json")
        told = orjson.loads(body)
        assert (told["status"], told["partitions"], told["partition_count"]) == ("ready", [0, 2], 4)
        assert (told["model_version"], told["top_k"], told["user_lookup"]) == ("popularity", 3, True)
        assert told["totals"]["events"] == sum(6 // 2 for user in ("ann", "bob") if partition_of(user, 4) in (0, 2))
        assert [sample["number"] for sample in told["samples"]] == [1, 2]
        newer = orjson.loads((await site.get("/api/overview?after=1"))[2])
        assert newer["samples"] == told["samples"][1:]
        for bad in ("-1", "x", "1e3", "9" * 40, "%D9%A3"):
            assert (await site.get(f"/api/overview?after={bad}"))[0] == 400


async def test_browsers_are_told_to_keep_nothing_and_to_let_no_other_site_in(open_site):
    async with open_site() as site:
        for path in ("/", "/api/overview", "/api/users/nobody", "/api/overview?after=x"):
            _, headers, _ = await site.get(path)
            assert headers["Cache-Control"] == "no-store"
            assert headers["X-Content-Type-Options"] == "nosniff"
            assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
            assert "Access-Control-Allow-Origin" not in headers
            policy = dict(part.split(" ", 1) for part in headers["Content-Security-Policy"].split("; "))
            assert (policy["default-src"], policy["frame-ancestors"]) == ("'none'", "'none'")
            assert "unsafe" not in headers["Content-Security-Policy"]


async def test_the_policy_names_the_one_script_and_the_one_style_and_the_page_needs_nothing_else(open_site):
    async with open_site() as site:
        status, headers, body = await site.get("/")
        assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
        html = body.decode()
        for tag in ("script", "style"):
            (text,) = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
            assert (
                f"{tag}-src 'sha256-{b64encode(sha256(text.encode()).digest()).decode()}';"
                in headers["Content-Security-Policy"]
            )
        assert re.findall(r"(?:src|href)=\"(?!data:)", html) == []
        outside = {url for url in re.findall(r"https?://[^\s\"'`)]+", html) if "www.w3.org" not in url}
        assert outside == set()
        assert re.findall(r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\b| style=| on\w+=\"", html) == []


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("localhost", True), ("LOCALHOST:80", True), ("127.0.0.1:6066", True), ("[::1]:6066", True), ("10.1.2.3", True),
        ("recs.example:6066", True), ("other.example", True),
        ("evil.example", False), ("127.0.0.1.evil.example", False), ("localhost.evil.example", False),
        ("evil.example:6066", False), ("[::1", False), ("user@localhost.evil.example", False),
    ],
)  # fmt: skip
async def test_a_name_that_was_made_to_point_here_is_refused(open_site, feed, host, allowed):
    async with open_site(page_hosts="recs.example, other.example") as site:
        site.hold(0, 1, 2, 3)
        feed(site, "clicks", [("ann", "i1")])
        for path in ("/", "/api/overview", "/api/users/ann"):
            status, _, body = await site.get(path, host)
            assert status in ((200,) if allowed else (400, 403)), (path, body)
            assert allowed or b"i1" not in body
        assert (await site.get("/health/live", host))[0] in (200, 400)  # probes come under any name


@pytest.mark.parametrize(
    ("http_host", "page_users", "shown"),
    [
        ("127.0.0.1", "auto", True), ("localhost", "auto", True), ("::1", "auto", True),
        ("0.0.0.0", "auto", False), ("::", "auto", False), ("10.0.0.7", "auto", False),
        ("recs.internal", "auto", False),
        ("0.0.0.0", "on", True), ("127.0.0.1", "off", False),
    ],
)  # fmt: skip
async def test_users_are_shown_beyond_this_host_only_when_that_was_asked_for(
    open_site, feed, http_host, page_users, shown
):
    assert is_loopback(http_host) == (http_host in ("127.0.0.1", "localhost", "::1"))
    async with open_site(http_host=http_host, page_users=page_users) as site:
        site.hold(0, 1, 2, 3)
        feed(site, "clicks", [("ann", "i1")])
        status, told = await site.user("ann")
        overview = orjson.loads((await site.get("/api/overview"))[2])
        assert (status, overview["user_lookup"]) == ((200, True) if shown else (403, False))
        if not shown:
            assert "RECSTREAM_PAGE_USERS=on" in told["fix"]
            assert (await site.user("nobody"))[1] == told  # not even whether somebody is known


async def test_ids_do_not_reach_the_log(open_site, feed, caplog):
    caplog.set_level("DEBUG")
    async with open_site() as site:
        site.hold(0, 1)
        feed(site, "clicks", [("secret-person", "i1")])
        await site.user("secret-person")
        await site.user("secret-stranger")
        site.lookup._read = lambda user: np.zeros(1)[5]  # a bug: the server logs it
        await site.get("/api/users/secret-person")
    assert "Error handling request" in caplog.text
    assert "secret" not in caplog.text


@pytest.mark.parametrize("page", [True, False])
def test_the_page_can_be_turned_off(tmp_path, page):
    app = create_app(load_settings(page=page, state_dir=tmp_path)).app
    (server,) = (service for service in app.services if isinstance(service, HttpServer))
    paths = {resource.canonical for resource in server._endpoints._runner.app.router.resources()}
    assert {"/metrics", "/health/live", "/health/ready"} <= paths
    assert ({"/", "/api/overview", "/api/users/{id}"} <= paths) == page
    assert any(path.startswith("/api") for path in paths) == page
    assert any(isinstance(service, Overview) for service in app.services) == page
