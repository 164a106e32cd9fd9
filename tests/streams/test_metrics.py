import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from streams.metrics import LATENCY_BUCKETS, BatchHistogram, LiveQuality, Metrics

values = st.lists(
    st.one_of(st.floats(0, 100), st.sampled_from([float(bound) for bound in LATENCY_BUCKETS])), max_size=50
)


def samples(registry):
    """Every sample as Prometheus would scrape it: (name, sorted labels) -> value."""
    families = text_string_to_metric_families(generate_latest(registry).decode())
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


@given(st.lists(values, max_size=4))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_a_batch_histogram_is_prometheus_clients_histogram(batches):
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    histogram = BatchHistogram("seconds", "help", LATENCY_BUCKETS)
    ours.register(histogram)
    reference = Histogram("seconds", "help", buckets=LATENCY_BUCKETS, registry=theirs)
    for batch in batches:
        histogram.observe(np.array(batch, np.float64))
        for value in batch:
            reference.observe(value)
    expected = {key: value for key, value in samples(theirs).items() if not key[0].endswith("_created")}
    got = samples(ours)
    assert got.keys() == expected.keys()
    assert all(got[key] == pytest.approx(expected[key]) for key in expected)


def test_quantiles_are_upper_bounds_of_buckets():
    histogram = BatchHistogram("seconds", "help", (1, 2, 3))
    assert histogram.quantile(0.99) == 0.0
    histogram.observe(np.array([0.5] * 98 + [2.5] * 2))
    assert (histogram.quantile(0.5), histogram.quantile(0.98), histogram.quantile(0.99)) == (1.0, 1.0, 3.0)
    histogram.observe(np.array([1e9]))
    assert histogram.quantile(1.0) == np.inf


def test_live_quality_is_the_mean_until_ten_thousand_and_then_follows_the_stream():
    rng, quality, ranks = np.random.default_rng(0), LiveQuality(), []
    for _ in range(50):
        batch = rng.integers(0, 6, rng.integers(1, 300))
        ranks += batch.tolist()
        quality.observe(batch.astype(np.int32))
        if len(ranks) <= 10_000:
            assert quality.hit_rate == pytest.approx(np.mean([rank > 0 for rank in ranks]))
            assert quality.reciprocal_rank == pytest.approx(np.mean([1 / rank if rank else 0 for rank in ranks]))
    assert quality.tested == len(ranks)
    for _ in range(200):
        quality.observe(np.zeros(500, np.int32))
    assert quality.hit_rate < 1e-3
    quality.observe(np.ones(50_000, np.int32))  # more than it remembers
    assert (quality.hit_rate, quality.reciprocal_rank) == (1.0, 1.0)


def test_ranks_are_counted_by_the_version_that_made_the_list_and_popularity_on_the_same_events():
    metrics = Metrics()
    names = {0: "popularity", 7: "v0001-00000007"}
    metrics.observe_ranks(
        names,
        ranks=np.array([-1, 0, 1, 2, 4, 0], np.int32),
        models=np.array([0, 7, 7, 7, 0, 9], np.uint32),
        popular=np.array([3, 0, 2, 0, 1, 1], np.int32),  # the first event's user had no list: not compared either
    )
    found = samples(metrics.registry)

    def of(name, version):
        return found["recstream_live_" + name, (("model_version", version),)]

    assert [of("tested_total", name) for name in ("v0001-00000007", "popularity", "00000009")] == [3, 1, 1]
    assert [of("hits_total", name) for name in ("v0001-00000007", "popularity", "00000009")] == [2, 1, 0]
    assert of("hit_rate", "v0001-00000007") == pytest.approx(2 / 3)
    assert of("mrr", "v0001-00000007") == pytest.approx((1 + 1 / 2) / 3)
    assert of("mrr", "popularity") == 0.25
    assert found["recstream_live_popularity_hits_total", ()] == 3
    assert found["recstream_live_popularity_hit_rate", ()] == pytest.approx(3 / 5)


def test_only_the_versions_used_last_have_series():
    metrics = Metrics()
    metrics.count_sent("v0001", 5)
    for number in range(100):
        metrics.count_sent(f"v{number:04}", 1)
        metrics.observe_ranks(
            {number: f"v{number:04}"}, np.ones(1, np.int32), np.array([number], np.uint32), np.ones(1)
        )
        metrics.count_sent("v0001", 1)  # still in use
    found = samples(metrics.registry)
    for name in ("recommendations_total", "live_tested_total", "live_hits_total", "live_hit_rate", "live_mrr"):
        versions = {dict(labels)["model_version"] for key, labels in found if key == f"recstream_{name}"}
        assert {"v0099", "v0001"} <= versions, name
        assert len(versions) <= 16, name
    assert found["recstream_recommendations_total", (("model_version", "v0001"),)] == 106
    assert len(metrics.live) <= 16


def test_nothing_tested_changes_nothing():
    metrics = Metrics()
    before = ours(metrics)
    metrics.observe_ranks({}, np.full(3, -1, np.int32), np.zeros(3, np.uint32), np.ones(3, np.int32))
    assert ours(metrics) == before


def ours(metrics):
    """What the worker counts, without the process's own figures and the times of creation."""
    found = samples(metrics.registry)
    return {key: found[key] for key in found if key[0].startswith("recstream_") and not key[0].endswith("_created")}


def test_two_workers_in_one_process_do_not_share_metrics():
    first, second = Metrics(), Metrics()
    first.flushes.inc(5)
    assert samples(second.registry)["recstream_flushes_total", ()] == 0
