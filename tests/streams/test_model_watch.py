import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from models.network import Network, NetworkConfig
from models.recommend import Recommender
from models.registry import Registry, VersionRefused
from state.arena import Arena
from state.items import ItemIndex
from state.store import UserStore
from streams.metrics import Metrics
from streams.model_watch import ModelWatch, load_serving
from streams.partition import Partition
from streams.pipeline import Pipeline
from streams.settings import load_settings

T0 = 1_700_000_000_000


class Watched:
    """A watch on a registry in a directory, beside a pipeline that was never started."""

    def __init__(self, directory):
        self.directory = Path(directory, "registry")
        settings = load_settings(registry=str(self.directory), state_dir=Path(directory, "state"))
        self.metrics, self.recommender = Metrics(), Recommender(ItemIndex(), k=3, exclude="none")
        self.pipeline = Pipeline(settings, self.recommender, self.metrics)
        self.watch = ModelWatch(settings, self.pipeline, self.metrics)
        self.partition = Partition(0, UserStore(Arena(0, settings.top_k), self.recommender.items))
        self.partition.store.arena.recs = np.zeros((1024, 3), np.int32)
        self.offset = 0

    def publish(self, seed, items=12, cell="gru", **options):
        torch.manual_seed(seed)
        network = Network(NetworkConfig(items=items + 1, cell=cell, hidden=8, embedding=4))
        nn.init.normal_(network.item_embedding.weight)
        words = ["", *(f"i{n}" for n in range(items))]
        return Registry(self.directory).publish(network, words, {"ndcg": 0.1}, {"seed": seed}, **options)

    def sample(self, name, **labels):
        return self.metrics.registry.get_sample_value(f"recstream_{name}", labels)

    def serve(self, record_batch):
        """One event through the pipeline's own compute stage: the version that answered it."""
        self.offset += 1
        before = len(self.pipeline._compute._noted)
        self.pipeline._compute.round(
            [(self.partition, [record_batch("clicks", [("ann", "i1", self.offset, T0 + self.offset)])])]
        )
        (note,) = self.pipeline._compute._noted[before:]
        assert len(note.advanced.items) == 1
        return note.advanced.model_version


@pytest.fixture
def watched(tmp_path):
    watched = Watched(tmp_path)
    yield watched
    watched.pipeline._thread.shutdown()


async def test_without_a_registry_nothing_is_served_and_nothing_fails(watched, record_batch):
    await watched.watch.look()
    assert watched.serve(record_batch) == "popularity"
    assert watched.sample("model_refused_total") == 0


async def test_versions_are_served_as_they_are_promoted_forth_and_back(watched, record_batch):
    first = watched.publish(1)
    await watched.watch.look()
    assert watched.serve(record_batch) == first
    candidate = watched.publish(2, promote=False)
    await watched.watch.look()
    assert watched.serve(record_batch) == first
    Registry(watched.directory).promote(candidate)
    await watched.watch.look()
    assert watched.serve(record_batch) == candidate
    Registry(watched.directory).promote(first)
    await watched.watch.look()
    assert watched.serve(record_batch) == first
    assert watched.sample("model_swaps_total") == 3
    assert watched.sample("model_number") == 1
    assert watched.sample("model_info", version=first, cell="gru", items="12") == 1


async def test_a_storage_that_cannot_be_reached_leaves_serving_as_it_is(watched, record_batch, monkeypatch):
    first = watched.publish(1)
    await watched.watch.look()
    second = watched.publish(2)

    for lost in ("CURRENT", "weights.safetensors"):

        def read(path, lost=lost):
            if path.endswith(lost):
                raise Exception("Could not connect to the endpoint URL")  # as s3fs and gcsfs do: no OSError
            return Path(path).read_bytes()

        with monkeypatch.context() as patched:
            patched.setattr(watched.watch._registry._fs, "cat_file", read)
            await watched.watch.look()
    assert watched.serve(record_batch) == first
    assert watched.sample("model_refused_total") == 2
    watched.watch._retry_at = 0.0
    await watched.watch.look()
    assert watched.serve(record_batch) == second


async def test_a_version_is_read_once(watched, monkeypatch):
    name, reads = watched.publish(1), []

    def read(path):
        reads.append(Path(path).name)
        return Path(path).read_bytes()

    monkeypatch.setattr(watched.watch._registry._fs, "cat_file", read)
    await watched.watch.look()
    assert watched.recommender.model_version == name
    assert reads.pop(0) == "CURRENT"
    assert sorted(reads) == sorted(path.name for path in Path(watched.directory, name).iterdir())


async def test_a_version_that_is_served_is_not_loaded_again(watched):
    watched.publish(1)
    await watched.watch.look()
    model = watched.recommender.model
    await watched.watch.look()
    assert watched.recommender.model is model
    assert watched.sample("model_swaps_total") == 1


async def test_another_cell_and_a_larger_catalogue_are_swapped_in_between_two_events(watched, record_batch):
    watched.publish(1)
    await watched.watch.look()
    watched.serve(record_batch)
    bigger = watched.publish(2, items=40, cell="lstm")
    await watched.watch.look()
    assert watched.serve(record_batch) == bigger
    watched.pipeline._compute.publish()
    assert watched.sample("rehydrations_total") == 1
    assert watched.sample("model_info", version=bigger, cell="lstm", items="40") == 1


def flip_a_byte(version):
    path = version / "weights.safetensors"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut_short(version):
    path = version / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def lose_the_vocabulary(version):
    (version / "vocabulary.json").unlink()


def change_the_configuration(version):
    path = version / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "hidden": 16}))


def lose_everything(version):
    shutil.rmtree(version)


DAMAGES = [flip_a_byte, cut_short, lose_the_vocabulary, change_the_configuration, lose_everything]


@pytest.mark.parametrize("damage", DAMAGES)
async def test_a_damaged_version_is_refused_and_counted_and_serving_goes_on(watched, record_batch, damage, caplog):
    good = watched.publish(1)
    await watched.watch.look()
    bad = watched.publish(2)
    damage(watched.directory / bad)
    with caplog.at_level(logging.ERROR, logger="streams.model_watch"):
        for _ in range(3):
            await watched.watch.look()
    assert watched.serve(record_batch) == good
    assert watched.sample("model_refused_total") == 1
    assert watched.sample("model_swaps_total") == 1
    assert watched.sample("model_info", version=good, cell="gru", items="12") == 1
    assert len(caplog.records) == 1
    assert good in caplog.text
    with pytest.raises(VersionRefused):
        load_serving(Registry(watched.directory), bad)
    better = watched.publish(3)
    await watched.watch.look()
    assert watched.serve(record_batch) == better


@pytest.mark.parametrize("pointer", ["v9999-00000001", "../elsewhere", "", "nonsense\n"])
async def test_a_pointer_to_nothing_is_refused_and_serving_goes_on(watched, record_batch, pointer):
    good = watched.publish(1)
    await watched.watch.look()
    (watched.directory / "CURRENT").write_text(pointer)
    await watched.watch.look()
    assert watched.serve(record_batch) == good
    assert watched.sample("model_swaps_total") == 1


async def test_a_refused_version_that_was_repaired_is_served_after_a_while(watched, record_batch, monkeypatch):
    watched.publish(1)
    await watched.watch.look()
    bad = watched.publish(2)
    weights = watched.directory / bad / "weights.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1])
    await watched.watch.look()
    weights.write_bytes(whole)
    await watched.watch.look()
    assert watched.serve(record_batch) != bad
    monkeypatch.setattr("streams.model_watch._RETRY_SECONDS", 0.0)
    watched.watch._retry_at = 0.0
    await watched.watch.look()
    assert watched.serve(record_batch) == bad
    assert watched.sample("model_refused_total") == 1


async def test_an_outdated_pointer_to_an_older_version_is_refused_and_a_rollback_is_not(watched, record_batch, caplog):
    registry, pointer = Registry(watched.directory), watched.directory / "CURRENT"
    first = watched.publish(1)
    await watched.watch.look()
    outdated = pointer.read_bytes()
    second = watched.publish(2)
    await watched.watch.look()
    for text in (outdated, first.encode()):  # as a cache returns it; as somebody writes it by hand
        pointer.write_bytes(text)
        watched.watch._refused = ""
        before = watched.sample("model_refused_total")
        with caplog.at_level(logging.ERROR, logger="streams.model_watch"):
            for _ in range(3):
                await watched.watch.look()
        assert watched.serve(record_batch) == second
        assert watched.sample("model_refused_total") == before + 1
    assert "older" in caplog.text and len(caplog.records) == 2
    registry.promote(second)
    third = watched.publish(3)
    await watched.watch.look()
    assert watched.serve(record_batch) == third
    assert registry.rollback() == second
    await watched.watch.look()
    assert watched.serve(record_batch) == second


async def test_after_a_registry_was_restored_workers_are_to_be_restarted_and_are_told_so(
    watched, record_batch, caplog, tmp_path
):
    registry, pointer = Registry(watched.directory), watched.directory / "CURRENT"
    first = watched.publish(1)
    backup = pointer.read_bytes()
    for seed in (2, 3, 4):
        newest = watched.publish(seed)
    await watched.watch.look()
    pointer.write_bytes(backup)
    registry.promote(first)  # does not help: the pointer has been further on before
    with caplog.at_level(logging.ERROR, logger="streams.model_watch"):
        await watched.watch.look()
    assert watched.serve(record_batch) == newest
    assert "restart" in caplog.text
    restarted = Watched(tmp_path)
    await restarted.watch.on_first_start()
    assert restarted.serve(record_batch) == first
    restarted.pipeline._thread.shutdown()


async def test_a_pointer_that_cannot_be_read_is_logged_once_a_minute(watched, caplog):
    good = watched.publish(1)
    await watched.watch.look()
    (watched.directory / "CURRENT").write_text("nonsense")
    with caplog.at_level(logging.ERROR, logger="streams.model_watch"):
        for _ in range(3):
            await watched.watch.look()
        assert len(caplog.records) == 1 and good in caplog.text
        watched.watch._retry_at = 0.0  # a minute later
        await watched.watch.look()
    assert len(caplog.records) == 2
    assert watched.sample("model_refused_total") == 4


async def test_a_storage_that_was_away_does_not_bring_an_outdated_pointer_back(watched, record_batch, monkeypatch):
    pointer = watched.directory / "CURRENT"
    watched.publish(1)
    outdated = pointer.read_bytes()
    second = watched.publish(2)
    await watched.watch.look()

    def away(path):
        raise OSError("no route to host")

    with monkeypatch.context() as patched:
        patched.setattr(watched.watch._registry._fs, "cat_file", away)
        await watched.watch.look()
    pointer.write_bytes(outdated)
    await watched.watch.look()
    assert watched.serve(record_batch) == second


async def test_users_vectors_are_ready_when_a_version_is_swapped_in(watched, record_batch):
    watched.publish(1)
    await watched.watch.look()
    arena = watched.partition.store.arena
    watched.pipeline.partitions[0] = watched.partition
    watched.serve(record_batch)
    second = watched.publish(2)
    await watched.watch.look()
    assert arena.model[arena.find("ann")] == watched.recommender.model.fingerprint
    assert watched.sample("rehydrations_total") == 1  # at the swap
    assert watched.serve(record_batch) == second
    watched.pipeline._compute.publish()
    assert watched.sample("rehydrations_total") == 1  # not again by her event
    del watched.pipeline.partitions[0]


async def test_the_age_of_a_version_is_told_where_it_is_known(watched):
    torch.manual_seed(0)
    network = Network(NetworkConfig(items=3, hidden=8, embedding=4))
    Registry(watched.directory).publish(network, ["", "a", "b"], {}, {"created_ms": 1_700_000_000_500})
    await watched.watch.look()
    assert watched.sample("model_created_timestamp_seconds") == 1_700_000_000.5
    watched.publish(1)
    await watched.watch.look()
    assert watched.sample("model_created_timestamp_seconds") == 0
