import asyncio

import orjson
import pytest
import torch
from aiokafka import AIOKafkaConsumer
from typer.testing import CliRunner

from models.network import Network, NetworkConfig
from models.registry import Registry
from streams.broker import EmbeddedBroker
from streams.cli import app
from streams.settings import load_settings
from streams.topics import create_topics

NOBODY = "127.0.0.1:1"


def run(command, *arguments, brokers=NOBODY):
    talks = ("--brokers", brokers) if command in ("promote", "rollback") else ()
    return CliRunner().invoke(app, ["models", command, *map(str, arguments), *talks])


def last_json(result):
    assert result.exit_code == 0, result.output
    return orjson.loads(result.stdout.strip().splitlines()[-1])


@pytest.fixture
def registry(tmp_path):
    store, parent = Registry(tmp_path / "registry"), None
    for number in range(3):
        torch.manual_seed(number)
        words = ["", *(f"i{item}" for item in range(number, number + 5))]
        network = Network(NetworkConfig(items=6, hidden=4, embedding=3))
        gate = {"promoted": number != 2, "reasons": ["because"]}
        metrics = {"ndcg@10": 0.1 * (number + 1), "gate": gate}
        lineage = {"parent": parent, "origin": "fine-tuned", "trigger": "events", "created_ms": 1_700_000_000_000}
        parent = store.publish(network, words, metrics, lineage, promote=number != 2)
    return store


def test_list_shows_every_version_and_which_serves(registry):
    body = last_json(run("list", "--json", "--registry", registry.url))
    assert body["serving"] == registry.versions()[1]
    assert [entry["version"] for entry in body["versions"]] == registry.versions()
    assert [entry["promoted"] for entry in body["versions"]] == [True, True, False]
    table = run("list", "--registry", registry.url)
    assert all(name in table.stdout for name in registry.versions())
    assert "rejected" in table.stdout


def test_list_names_a_damaged_version_and_goes_on(registry, tmp_path):
    (tmp_path / "registry" / registry.versions()[0] / "metrics.json").write_text("{}")
    body = last_json(run("list", "--json", "--registry", registry.url))
    assert "metrics.json" in body["versions"][0]["damaged"]
    assert registry.versions()[0] in run("list", "--registry", registry.url).stderr
    assert len(body["versions"]) == 3


def test_an_empty_registry_is_no_error(tmp_path):
    assert last_json(run("list", "--json", "--registry", tmp_path / "none")) == {"serving": None, "versions": []}
    assert run("rollback", "--registry", tmp_path / "none").exit_code == 1
    assert run("diff", "1", "--registry", tmp_path / "none").exit_code == 1


def test_show_takes_a_name_or_a_number(registry):
    name = registry.versions()[1]
    by_number, by_name = (last_json(run("show", v, "--json", "--registry", registry.url)) for v in (2, name))
    assert by_number == by_name
    assert by_name["serving"] is True
    assert by_name["config"]["hidden"] == 4
    assert by_name["lineage"]["parent"] == registry.versions()[0]
    assert "gate.reasons" in run("show", name, "--registry", registry.url).stdout


@pytest.mark.parametrize("version", ["9", "v0009-00000000", "nonsense"])
def test_an_unknown_version_is_an_error_that_helps(registry, version):
    result = run("show", version, "--registry", registry.url)
    assert result.exit_code == 1
    assert "recstream models list" in result.stderr


def test_promote_and_roll_back(registry):
    first, second, third = registry.versions()
    body = last_json(run("promote", "3", "--json", "--registry", registry.url))
    assert body == {"serving": third, "before": second, "announced": False}
    assert last_json(run("rollback", "--json", "--registry", registry.url))["serving"] == second
    assert last_json(run("rollback", "--json", "--registry", registry.url))["serving"] == first
    result = run("rollback", "--registry", registry.url)
    assert result.exit_code == 1
    assert f"no other one served before {first}" in result.stderr
    assert registry.current() == first


def test_rolling_back_goes_by_what_served_not_by_number_or_parent(registry):
    first, second, third = registry.versions()
    assert run("promote", "3", "--registry", registry.url).exit_code == 0
    assert run("promote", "1", "--registry", registry.url).exit_code == 0
    assert last_json(run("rollback", "--json", "--registry", registry.url))["serving"] == third
    assert last_json(run("rollback", "--json", "--registry", registry.url))["serving"] == second
    states = {
        entry["version"]: entry["state"]
        for entry in last_json(run("list", "--json", "--registry", registry.url))["versions"]
    }
    assert states == {first: "not serving", second: "serving", third: "rejected"}


def test_without_a_broker_promotion_happens_and_says_that_it_was_not_announced(registry):
    result = run("promote", "3", "--registry", registry.url)
    assert result.exit_code == 0
    assert "\nnot announced on model-versions: " in result.stderr
    assert registry.current() == registry.versions()[2]


def test_promotion_is_announced_where_there_is_a_broker(registry):
    with EmbeddedBroker() as broker:
        create_topics(load_settings(brokers=broker.bootstrap, partitions=1))
        body = last_json(run("promote", "3", "--json", "--registry", registry.url, brokers=broker.bootstrap))
        assert body["announced"] is True
        records = asyncio.run(announcements(broker.bootstrap))
    assert [(record.key.decode(), orjson.loads(record.value)["parent"]) for record in records] == [
        (registry.versions()[2], registry.versions()[1])
    ]


async def announcements(bootstrap):
    consumer = AIOKafkaConsumer("model-versions", bootstrap_servers=bootstrap, auto_offset_reset="earliest")
    await consumer.start()
    try:
        found = await consumer.getmany(timeout_ms=10_000)
        return [record for records in found.values() for record in records]
    finally:
        await consumer.stop()


def test_a_damaged_pointer_is_said_and_mended_by_promoting(registry, tmp_path):
    (tmp_path / "registry" / "CURRENT").write_text("nonsense")
    listed = run("list", "--json", "--registry", registry.url)
    assert last_json(listed)["serving"] is None
    assert "CURRENT" in listed.stderr
    assert last_json(run("promote", "2", "--json", "--registry", registry.url))["before"] is None
    assert registry.current() == registry.versions()[1]


def test_a_damaged_version_is_not_promoted(registry, tmp_path):
    path = tmp_path / "registry" / registry.versions()[2] / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    before = registry.current()
    assert run("promote", "3", "--registry", registry.url).exit_code == 1
    assert registry.current() == before


def test_diff_says_what_changed(registry):
    first, second, _ = registry.versions()
    body = last_json(run("diff", "1", "--json", "--registry", registry.url))
    assert (body["old"], body["new"]) == (first, second)
    assert (body["added"], body["removed"]) == (["i5"], ["i0"])
    assert body["metrics"]["ndcg@10"] == [0.1, 0.2]
    assert body["moved"]["projection.weight"] > 0.5
    same = last_json(run("diff", "1", "1", "--json", "--registry", registry.url))
    assert not same["added"] and not any(same["moved"].values())
    assert "items only here" in run("diff", "1", "2", "--registry", registry.url).stdout


def test_diff_shows_ids_that_look_like_markup_as_they_are(registry):
    odd = ["[/a]", "[red]x", "\x1b[2J"]
    registry.publish(Network(NetworkConfig(items=4, hidden=4, embedding=3)), ["", *odd], {}, {})
    result = run("diff", "1", "4", "--registry", registry.url)
    assert result.exit_code == 0, result.output
    assert r"[/a], [red]x, \x1b[2J" in result.stdout
