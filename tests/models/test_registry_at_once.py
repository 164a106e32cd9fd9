"""Several processes and threads at one registry."""

import errno
import fcntl
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch

import models.registry
from models.network import Network
from models.registry import Registry, VersionRefused
from models.version import parse_name
from tests.models.versions import LINEAGE, METRICS, WORDS, build


def several(target: Callable[..., None], arguments: Iterable[tuple[Any, ...]]) -> list[BaseProcess]:
    """Processes that have begun, forked off one that has imported torch: to import it takes longer than their work."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    workers: list[BaseProcess] = [context.Process(target=target, args=given) for given in arguments]
    for worker in workers:
        worker.start()
    return workers


def publish_some(path: str, seed: int, count: int) -> None:
    torch.set_num_threads(1)
    for turn in range(count):
        Registry(path).publish(build(seed * 100 + turn), WORDS, METRICS, LINEAGE)


def test_publishing_processes_never_share_a_number(tmp_path: Path) -> None:
    workers = several(publish_some, [(str(tmp_path), seed, 6) for seed in range(3)])
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


def promote_often(path: str, names: list[str], times: int) -> None:
    registry = Registry(path)
    for turn in range(times):
        registry.promote(names[turn % len(names)])


def test_no_promotion_of_several_processes_is_lost(tmp_path: Path) -> None:
    names = [Registry(tmp_path).publish(build(seed), WORDS, METRICS, LINEAGE, promote=False) for seed in range(4)]
    workers = several(promote_often, [(str(tmp_path), names[:2], 100)] * 2)
    promote_often(str(tmp_path), names[2:], 100)
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    serving, turn = Registry(tmp_path).pointer()
    assert sorted(serving) == sorted(names)
    assert turn == 300


@pytest.mark.parametrize("how", ["promote", "succeed", "rollback"])
def test_whoever_replaces_the_pointer_waits_for_another_who_has_read_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    registry = Registry(tmp_path)
    first, second = (registry.publish(build(seed), WORDS, METRICS, LINEAGE) for seed in range(2))
    third = registry.publish(build(3), WORDS, METRICS, LINEAGE, promote=False)
    reached, go_on, real = threading.Event(), threading.Event(), models.registry.write_pointer

    def slowly(*args: Any) -> None:
        if not reached.is_set():
            reached.set()
            assert go_on.wait(30)
        real(*args)

    monkeypatch.setattr(models.registry, "write_pointer", slowly)
    uses = {
        "promote": lambda: registry.promote(third),
        "succeed": lambda: registry.succeed(third, second),
        "rollback": registry.rollback,
    }
    threads = [threading.Thread(target=uses[how])]
    threads[0].start()
    assert reached.wait(30)  # it has read the pointer
    threads.append(threading.Thread(target=lambda: Registry(tmp_path).promote(first)))
    threads[1].start()
    threads[1].join(0.3)
    assert threads[1].is_alive()
    go_on.set()
    for thread in threads:
        thread.join(30)
    assert registry.pointer() == ({"rollback": [first]}.get(how, [first, third, second]), 4)


def test_a_rollback_looks_again_when_the_pointer_moved_while_it_looked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = Registry(tmp_path)
    names = [registry.publish(build(seed), WORDS, METRICS, LINEAGE) for seed in range(3)]
    load = registry.load

    def promoting(name: str) -> Any:
        monkeypatch.undo()
        assert Registry(tmp_path).rollback() == names[1]
        return load(name)

    monkeypatch.setattr(registry, "load", promoting)
    assert registry.rollback() == names[0]
    assert registry.pointer() == ([names[0]], 5)


def test_a_holder_that_is_suspended_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = Registry(tmp_path).publish(build(), WORDS, METRICS, LINEAGE, promote=False)
    monkeypatch.setattr("models.storage._LOCK_SECONDS", 0.1)
    held = os.open(tmp_path / ".lock", os.O_RDONLY | os.O_CREAT)
    fcntl.flock(held, fcntl.LOCK_EX)
    with pytest.raises(VersionRefused, match=r"cannot be changed now.*another process"):
        Registry(tmp_path).promote(name)
    os.close(held)  # as its death does
    Registry(tmp_path).promote(name)


def test_a_disk_that_cannot_lock_is_used_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(code, "refused")

    monkeypatch.setattr("models.storage.fcntl.flock", refuse)
    code = errno.ENOLCK
    name = Registry(tmp_path).publish(build(), WORDS, METRICS, LINEAGE)
    assert Registry(tmp_path).current() == name
    code = errno.EIO
    with pytest.raises(VersionRefused, match="cannot be changed now"):
        Registry(tmp_path).promote(name)
