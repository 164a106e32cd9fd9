import asyncio
import socket
import time

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from models.recommend import Recommender
from state.items import ItemIndex
from streams.errors import BrokerError
from streams.http import STUCK_SECONDS, HttpServer
from streams.metrics import Metrics
from streams.pipeline import Pipeline
from streams.settings import load_settings
from streams.trainer_http import TrainerHttp
from streams.trainer_metrics import TrainerMetrics


@pytest.fixture
def port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
async def served(port, tmp_path):
    """A server on a free port beside a pipeline that was never started, and a function that gets a path."""
    metrics = Metrics()
    pipeline = Pipeline(load_settings(state_dir=tmp_path), Recommender(ItemIndex(), k=3), metrics)
    server = HttpServer("127.0.0.1", port, metrics, pipeline)
    await server.start()
    async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:

        async def get(path):
            async with session.get(path) as response:
                return response.status, response.headers["Content-Type"], await response.read()

        yield metrics, pipeline, get
    await server.stop()
    pipeline._thread.shutdown()


async def test_metrics_are_what_prometheus_reads(served):
    metrics, _, get = served
    metrics.events.labels("clicks", "applied").inc(3)
    status, content_type, body = await get("/metrics")
    assert status == 200
    assert content_type.startswith("text/plain")
    families = {family.name: family for family in text_string_to_metric_families(body.decode())}
    assert families["recstream_events"].samples[0].value == 3
    assert families["recstream_event_to_recommendation_seconds"].type == "histogram"
    assert all(family.documentation for family in families.values())
    bounds = [
        sample.labels["le"] for sample in families["recstream_event_to_recommendation_seconds"].samples
        if "le" in sample.labels
    ]  # fmt: skip
    assert (bounds[0], bounds[-1]) == ("0.0005", "+Inf")


async def test_a_worker_is_ready_while_it_processes_events(served):
    metrics, pipeline, get = served
    status, _, body = await get("/health/ready")
    assert status == 503
    assert b'"restoring or rebalancing"' in body
    assert metrics.registry.get_sample_value("recstream_ready") == 0
    pipeline.ready = True
    status, content_type, body = await get("/health/ready")
    assert (status, content_type.split(";")[0]) == (200, "application/json")
    assert b'"ready"' in body
    assert b'"model_version": "popularity"' in body
    assert metrics.registry.get_sample_value("recstream_ready") == 1


@pytest.mark.parametrize("membership", ["unsure", "lost"])
async def test_a_worker_whose_group_does_not_answer_is_not_ready(served, membership):
    metrics, pipeline, get = served
    pipeline.ready = True
    pipeline.membership = lambda: membership
    status, _, body = await get("/health/ready")
    assert (status, b'"no answer from Kafka"' in body) == (503, True)
    assert metrics.registry.get_sample_value("recstream_ready") == 0
    assert (await get("/health/live"))[0] == 200  # a restart would not bring Kafka back


async def test_a_worker_is_alive_unless_events_wait_and_nothing_moves(served):
    _, pipeline, get = served
    assert (await get("/health/live"))[0] == 200
    pipeline.progressed_at = time.monotonic() - STUCK_SECONDS - 1
    assert (await get("/health/live"))[0] == 200  # nothing waits: an idle topic is no fault
    await pipeline.put(object())
    status, _, body = await get("/health/live")
    assert status == 503
    assert b'"stuck"' in body
    pipeline.progressed_at = time.monotonic()
    assert (await get("/health/live"))[0] == 200


async def test_other_paths_do_not_exist(served):
    _, _, get = served
    assert (await get("/"))[0] == 404


async def test_scrapes_at_once_are_all_answered(served):
    _, _, get = served
    answers = await asyncio.gather(*(get("/metrics") for _ in range(20)))
    assert {status for status, *_ in answers} == {200}


async def test_a_taken_port_is_named_with_the_setting_that_moves_it(port, tmp_path):
    pipeline = Pipeline(load_settings(state_dir=tmp_path), Recommender(ItemIndex(), k=3), Metrics())
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        server = HttpServer("127.0.0.1", port, Metrics(), pipeline)
        with pytest.raises(BrokerError, match=rf"127.0.0.1:{port}.*RECSTREAM_HTTP_PORT"):
            await server.on_start()
        await server.on_stop()
    pipeline._thread.shutdown()


async def test_endpoints_are_reached_from_this_machine_alone_unless_told(port):
    """127.0.0.2 is this machine too, but another address: what listens on 127.0.0.1 alone does not answer there."""
    settings = load_settings()
    for host, reached in ((settings.http_host, False), ("0.0.0.0", True)):
        for start in (
            lambda host: HttpServer(host, port, Metrics(), None)._endpoints,
            lambda host: TrainerHttp(host, port, TrainerMetrics(), lambda: True),
        ):
            endpoints = start(host)
            await endpoints.start()
            try:
                assert _connects("127.0.0.1", port)
                assert _connects("127.0.0.2", port) == reached
            finally:
                await endpoints.stop()


def _connects(host, port):
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((host, port)) == 0
