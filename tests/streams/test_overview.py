import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.recommend import Recommender
from state.items import ItemIndex
from streams.metrics import LATENCY_BUCKETS, BatchHistogram, Metrics
from streams.overview import KEPT_SAMPLES, LEAST_TESTED, Overview, quantile_ms, total
from streams.pipeline import Pipeline
from streams.settings import load_settings


@pytest.fixture
async def watched(tmp_path):
    """Metrics, the pipeline, an overview, and a function that lets a second pass and takes a sample."""
    metrics = Metrics()
    pipeline = Pipeline(load_settings(state_dir=tmp_path), Recommender(ItemIndex(), k=3), metrics)
    now = [100.0]
    overview = Overview(metrics, pipeline, clock=lambda: now[0])

    def tick(seconds=1.0):
        now[0] += seconds
        return overview.sample()

    yield metrics, pipeline, overview, tick
    pipeline._thread.shutdown()


async def test_rates_and_latencies_are_those_of_the_last_seconds(watched):
    metrics, _, _, tick = watched
    first = tick()
    assert (first.events_per_second, first.p50_ms, first.p99_ms) == (0, None, None)
    assert (first.lag, first.hit_rate, first.popularity_hit_rate) == (None, {}, None)
    metrics.events.labels("clicks", "applied").inc(30)
    metrics.events.labels("views", "applied").inc(20)
    metrics.events.labels("views", "duplicate").inc(1_000)
    metrics.latency.observe(np.full(100, 0.0009))
    metrics.behind = 7
    second = tick(2.0)
    assert (second.events_per_second, second.lag) == (25.0, 7)
    assert 0.5 < second.p50_ms < 1.0
    for _ in range(5):
        last = tick()
    assert last.events_per_second == 0  # five seconds later it is forgotten, and so are the latencies
    assert last.p99_ms is None


async def test_a_longer_flush_interval_widens_the_window(tmp_path):
    metrics, now = Metrics(), [0.0]
    pipeline = Pipeline(load_settings(state_dir=tmp_path), Recommender(ItemIndex(), k=3), metrics)
    overview = Overview(metrics, pipeline, 20.0, clock=lambda: now[0])
    rates = []
    for second in range(60):  # counters move once in ten seconds
        now[0] += 1
        if second % 10 == 0:
            metrics.events.labels("clicks", "applied").inc(1_000)
        rates.append(overview.sample().events_per_second)
    assert set(rates[25:]) == {100.0}
    pipeline._thread.shutdown()


async def test_samples_are_numbered_and_a_quarter_of_an_hour_is_kept(watched):
    _, _, overview, tick = watched
    assert overview.after(0) == []
    for _ in range(KEPT_SAMPLES + 100):
        tick()
    kept = overview.after(0)
    assert [sample.number for sample in kept] == list(range(101, KEPT_SAMPLES + 101))
    assert [sample.number for sample in overview.after(KEPT_SAMPLES + 97)] == [KEPT_SAMPLES + n for n in (98, 99, 100)]
    assert overview.after(KEPT_SAMPLES + 100) == overview.after(10**9) == []


async def test_hit_rates_are_told_of_versions_that_are_tested(watched):
    metrics, _, _, tick = watched
    names = {7: "v0007", 8: "v0008"}

    def test(fingerprint, count, hits):
        ranks = np.zeros(count, np.int32)
        ranks[:hits] = 1
        metrics.observe_ranks(names, ranks, np.full(count, fingerprint, np.uint32), np.zeros(count, np.int32))

    tick()
    test(7, LEAST_TESTED - 1, 10)
    few = tick()
    assert (few.hit_rate, few.popularity_hit_rate) == ({}, None)  # too few to tell anything
    test(7, 151, 30)
    assert tick().hit_rate == {"v0007": 0.2}
    test(8, 1_000, 500)
    both = tick()
    assert both.hit_rate == {"v0007": 0.2, "v0008": 0.5}
    assert both.popularity_hit_rate == 0
    for _ in range(4):
        tick()
    test(7, 5, 5)  # one of the old lists comes up now and then
    test(8, 1_000, 500)
    assert tick().hit_rate == {"v0008": 0.5}


async def test_every_version_served_is_noted_once(watched, serving_model):
    _, pipeline, overview, tick = watched
    tick()
    await pipeline.swap(serving_model(fingerprint=0xABC))
    tick()
    tick()
    await pipeline.swap(serving_model(fingerprint=0xDEF, seed=2))
    tick()
    assert [(one.version, one.fingerprint) for one in overview.served] == [
        ("popularity", 0), ("v0001-00000abc", 0xABC), ("v0001-00000def", 0xDEF),
    ]  # fmt: skip
    assert overview.served[0].at <= overview.served[1].at <= overview.served[2].at
    assert [overview.version_of(n) for n in (0, 0xABC, 0x123)] == ["popularity", "v0001-00000abc", "00000123"]


async def test_totals_are_those_of_the_metrics(watched):
    metrics, _, overview, _ = watched
    metrics.events.labels("clicks", "applied").inc(3)
    metrics.events.labels("views", "applied").inc(4)
    metrics.events.labels("views", "duplicate").inc(2)
    metrics.events.labels("clicks", "rejected").inc(1)
    metrics.recommendations.labels("v1").inc(5)
    metrics.recommendations.labels("v2").inc(2)
    metrics.users.labels("resident").set(11)
    metrics.users.labels("cold").set(6)
    assert overview.totals() == {
        "events": 7, "duplicates": 2, "rejected": 1, "recommendations": 7, "users_resident": 11, "users_cold": 6,
    }  # fmt: skip
    assert total(metrics.events, topic="views") == 6


@given(st.lists(st.floats(0, 100), min_size=1, max_size=200), st.floats(0.01, 1))
def test_a_quantile_lies_in_the_bucket_of_the_value_it_estimates(values, share):
    histogram = BatchHistogram("seconds", "help", LATENCY_BUCKETS)
    histogram.observe(np.array(values))
    exact = sorted(values)[max(int(np.ceil(share * len(values))), 1) - 1]
    place = int(np.searchsorted(LATENCY_BUCKETS, exact))
    estimate = quantile_ms(histogram.counts, share)
    bounds = [0.0, *LATENCY_BUCKETS, LATENCY_BUCKETS[-1]]
    lower, upper = bounds[place], bounds[place + 1]
    if place == len(LATENCY_BUCKETS):
        lower = upper
    assert 1000 * lower - 1e-3 <= estimate <= 1000 * upper + 1e-3


def test_nothing_observed_has_no_quantile():
    assert quantile_ms(np.zeros(len(LATENCY_BUCKETS) + 1, np.int64), 0.5) is None
