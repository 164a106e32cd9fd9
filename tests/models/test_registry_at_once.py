"""Several processes and threads at one registry."""

import multiprocessing
import threading
from pathlib import Path

import torch

from models.network import Network
from models.registry import Registry
from models.version import parse_name
from tests.models.versions import LINEAGE, METRICS, WORDS, build


def publish_some(path: str, seed: int, count: int) -> None:
    torch.set_num_threads(1)
    for turn in range(count):
        Registry(path).publish(build(seed * 100 + turn), WORDS, METRICS, LINEAGE)


def test_publishing_processes_never_share_a_number(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=publish_some, args=(str(tmp_path), seed, 6)) for seed in range(3)]
    for worker in workers:
        worker.start()
    publish_some(str(tmp_path), 9, 6)
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    names = Registry(tmp_path).versions()
    assert [parse_name(name)[0] for name in names] == list(range(1, 25))
    assert Registry(tmp_path).current() in names


def test_publishing_at_the_same_moment_never_shares_a_number(tmp_path: Path) -> None:
    networks, together = [build(seed) for seed in range(4)], threading.Barrier(4)
    names: list[str] = []

    def publish(network: Network) -> None:
        for _ in range(10):
            together.wait(30)
            names.append(Registry(tmp_path).publish(network, WORDS, METRICS, LINEAGE, promote=False))

    threads = [threading.Thread(target=publish, args=(network,)) for network in networks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(parse_name(name)[0] for name in names) == list(range(1, 41))


def test_readers_never_see_a_half_written_version(tmp_path: Path) -> None:
    registry, stop, seen = Registry(tmp_path), threading.Event(), set[str]()
    trouble: list[Exception] = []

    def read() -> None:
        reader = Registry(tmp_path)
        while not stop.is_set():
            try:
                name = reader.current()
                if name is not None:
                    seen.add(reader.load(name).name)
            except Exception as exc:  # collected for the main thread to judge
                trouble.append(exc)

    thread = threading.Thread(target=read)
    thread.start()
    names = [registry.publish(build(seed), WORDS, METRICS, LINEAGE) for seed in range(30)]
    stop.set()
    thread.join()
    assert not trouble
    assert seen and seen <= set(names)
