from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch

from models.network import Cell
from models.registry import Registry, VersionRefused
from models.version import MANIFEST, parse_name
from tests.models.versions import LINEAGE, METRICS, WORDS, build


class EndpointConnectionError(Exception):
    """botocore's, which s3fs lets through: no OSError."""


@pytest.fixture(params=["path", "file-url", "memory", "folders"])
def registry(request: pytest.FixtureRequest, tmp_path: Path) -> Registry:
    if request.param == "path":
        return Registry(tmp_path / "models [1]")  # brackets: the path must never be taken for a pattern
    if request.param == "file-url":
        return Registry(f"file://{tmp_path}/models")
    if request.param == "folders":  # nothing that is known to be a disk, and no store of keys either: as SFTP
        return Registry(f"asyncwrapper::file://{tmp_path}/models")
    fsspec.filesystem("memory").store.clear()
    fsspec.filesystem("memory").pseudo_dirs[:] = [""]
    return Registry("memory://unit/models")


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_what_was_published_is_what_loads(registry: Registry, cell: Cell) -> None:
    network = build(cell=cell)
    name = registry.publish(network, WORDS, METRICS, LINEAGE)
    version = registry.load(name)
    assert (version.name, version.vocabulary, version.metrics, version.lineage) == (name, WORDS, METRICS, LINEAGE)
    assert version.config == network.config
    assert name == f"v{version.number:04d}-{version.fingerprint:08x}"
    again = version.network()
    assert not again.training
    for key, tensor in network.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[key])


def test_an_empty_registry_has_nothing(registry: Registry) -> None:
    assert registry.current() is None
    assert registry.versions() == []


def test_versions_are_numbered_and_the_newest_is_current(registry: Registry) -> None:
    names = [registry.publish(build(seed), WORDS, METRICS, LINEAGE) for seed in range(4)]
    assert registry.versions() == names
    assert [parse_name(name)[0] for name in names] == [1, 2, 3, 4]
    assert registry.current() == names[-1]


def test_a_candidate_waits_for_promotion_and_an_older_version_can_return(registry: Registry) -> None:
    first = registry.publish(build(1), WORDS, METRICS, LINEAGE)
    second = registry.publish(build(2), WORDS, METRICS, LINEAGE, promote=False)
    assert registry.current() == first
    registry.promote(second)
    assert registry.current() == second
    registry.promote(first)
    assert registry.current() == first


def test_rolling_back_goes_along_what_was_promoted(registry: Registry) -> None:
    names = [registry.publish(build(seed), WORDS, METRICS, LINEAGE) for seed in range(4)]
    assert registry.promoted() == names[::-1]
    assert registry.rollback() == names[2]
    assert registry.promoted() == names[2::-1]
    fifth = registry.publish(build(5), WORDS, METRICS, LINEAGE)
    assert registry.promoted() == [fifth, names[2], names[1], names[0]]
    registry.promote(names[1])
    assert registry.promoted() == [names[1], fifth, names[2], names[0]]
    registry._fs.rm(f"{registry._root}/{fifth}", recursive=True)
    registry._fs.pipe_file(f"{registry._root}/{names[2]}/weights.safetensors", b"")
    assert registry.rollback() == names[0]
    assert registry.current() == names[0]
    with pytest.raises(VersionRefused, match="no other one served before"):
        registry.rollback()


def test_rolling_back_where_nothing_serves_is_refused(registry: Registry) -> None:
    with pytest.raises(VersionRefused, match="none was promoted yet"):
        registry.rollback()


def test_a_version_succeeds_the_one_it_was_made_from_and_no_other(registry: Registry) -> None:
    names = [registry.publish(build(seed), WORDS, METRICS, LINEAGE, promote=False) for seed in range(3)]
    assert registry.succeed(names[0], None)
    assert registry.succeed(names[1], names[0])
    assert registry.pointer() == ([names[1], names[0]], 2)
    assert registry.succeed(names[1], names[0])  # again, as after a kill
    assert not registry.succeed(names[2], names[0])
    assert not registry.succeed(names[2], None)
    assert registry.pointer() == ([names[1], names[0]], 2)
    with pytest.raises(VersionRefused, match="not in the registry"):
        registry.succeed("v0009-00000001", names[1])


def test_a_version_succeeds_at_the_turn_it_was_made_at_and_not_once_more(registry: Registry) -> None:
    names = [registry.publish(build(seed), WORDS, METRICS, LINEAGE, promote=False) for seed in range(3)]
    registry.promote(names[0])
    assert registry.succeed(names[1], names[0], at_turn=1)
    assert registry.succeed(names[1], names[0], at_turn=1)  # again, as after a kill
    assert registry.pointer() == ([names[1], names[0]], 2)
    assert registry.rollback() == names[0]
    assert not registry.succeed(names[1], names[0], at_turn=1)
    assert not registry.succeed(names[2], names[0], at_turn=1)
    assert registry.pointer() == ([names[0]], 3)
    assert registry.succeed(names[2], names[0], at_turn=3)


def test_promoting_mends_a_damaged_pointer(registry: Registry) -> None:
    name = registry.publish(build(), WORDS, METRICS, LINEAGE)
    registry._fs.pipe_file(f"{registry._root}/CURRENT", b"nonsense")
    registry.promote(name)
    assert registry.promoted() == [name]


def test_a_pointer_that_cannot_be_read_is_not_taken_for_a_damaged_one(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (registry.publish(build(seed), WORDS, METRICS, LINEAGE) for seed in range(2))

    def broken(*_: object, **__: object) -> None:
        raise EndpointConnectionError

    with monkeypatch.context() as patched:
        patched.setattr(registry._fs, "cat_file", broken)
        with pytest.raises(VersionRefused, match="unreadable pointer"):
            registry.promote(first)
    assert registry.promoted() == [second, first]


def test_promoting_asks_for_the_version_alone_and_waits_for_no_listing(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = registry.publish(build(), WORDS, METRICS, LINEAGE, promote=False)

    def not_yet(*_: object, **__: object) -> list[str]:
        return []

    monkeypatch.setattr(registry._fs, "ls", not_yet)
    registry.promote(name)
    assert registry.current() == name


def test_promotion_of_what_is_not_there_is_refused(registry: Registry) -> None:
    registry.publish(build(), WORDS, METRICS, LINEAGE)
    with pytest.raises(VersionRefused, match="not in the registry"):
        registry.promote("v0009-00000001")
    with pytest.raises(VersionRefused, match="not the name of a version"):
        registry.promote("../../etc/passwd")


def test_describe_reads_no_weights(registry: Registry, tmp_path: Path) -> None:
    name = registry.publish(build(), WORDS, METRICS, LINEAGE)
    fs, root = registry._fs, registry._root
    fs.rm_file(f"{root}/{name}/weights.safetensors")
    summary = registry.describe(name)
    assert (summary.name, summary.metrics, summary.lineage) == (name, METRICS, LINEAGE)
    assert summary.config == build().config


def test_retention_keeps_the_newest_and_the_current(registry: Registry) -> None:
    names = [registry.publish(build(seed), WORDS, METRICS, LINEAGE, promote=False) for seed in range(5)]
    registry.promote(names[1])
    assert registry.retention(keep=2) == [names[0], names[2]]
    assert registry.versions() == [names[1], names[3], names[4]]
    assert registry.load(names[1]).name == names[1]
    assert parse_name(registry.publish(build(9), WORDS, METRICS, LINEAGE))[0] == 6
    with pytest.raises(VersionRefused, match="at least the newest"):
        registry.retention(keep=0)


def test_retention_keeps_a_way_back_however_many_were_rejected_since(registry: Registry) -> None:
    served = [registry.publish(build(seed), WORDS, METRICS, LINEAGE) for seed in range(6)]
    registry._fs.rm(f"{registry._root}/{served[4]}", recursive=True)
    rejected = [registry.publish(build(seed), WORDS, METRICS, LINEAGE, promote=False) for seed in range(6, 9)]
    assert registry.retention(keep=2) == [served[0], rejected[0]]
    assert [registry.rollback() for _ in range(3)] == [served[3], served[2], served[1]]


@pytest.mark.parametrize("method", ["info", "rm_file"])
def test_retention_spares_what_is_promoted_while_it_deletes(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """After it has listed the versions; at the last moment before it takes the manifest."""
    names = [registry.publish(build(seed), WORDS, METRICS, LINEAGE) for seed in range(7)]
    real, operator = getattr(registry._fs, method), Registry(registry.url)

    def promoting(path: str, *args: object, **more: object) -> object:
        if path.endswith(f"{names[0]}/{MANIFEST}"):
            monkeypatch.undo()
            operator.promote(names[0])
        return real(path, *args, **more)

    monkeypatch.setattr(registry._fs, method, promoting)
    assert registry.retention(keep=1) == [names[1], names[2], names[3]]
    assert registry.load(names[0]).name == registry.current() == names[0]


def test_what_is_deleted_while_it_is_promoted_does_not_serve(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [registry.publish(build(seed), WORDS, METRICS, LINEAGE) for seed in range(2)]
    third = registry.publish(build(3), WORDS, METRICS, LINEAGE, promote=False)
    real = registry._fs.cat_file

    def deleting(path: str, *args: object, **more: object) -> bytes:
        if path.endswith("CURRENT"):
            monkeypatch.undo()
            registry._fs.rm(f"{registry._root}/{third}", recursive=True)
        return bytes(real(path, *args, **more))

    monkeypatch.setattr(registry._fs, "cat_file", deleting)
    with pytest.raises(VersionRefused, match="not in the registry"):
        registry.promote(third)
    assert registry.pointer() == ([names[1], names[0]], 4)


def test_the_first_version_deleted_while_it_is_promoted_leaves_nothing_serving(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = registry.publish(build(), WORDS, METRICS, LINEAGE, promote=False)
    real = registry._fs.info

    def deleting(path: str, *args: object, **more: object) -> object:
        found = real(path, *args, **more)
        if path.endswith(MANIFEST):
            monkeypatch.undo()
            registry._fs.rm(f"{registry._root}/{name}", recursive=True)
        return found

    monkeypatch.setattr(registry._fs, "info", deleting)
    with pytest.raises(VersionRefused, match="not in the registry"):
        registry.promote(name)
    assert registry.pointer() == ([], 2)


def test_retention_of_fewer_versions_than_kept_deletes_nothing(registry: Registry) -> None:
    assert registry.retention(keep=3) == []
    name = registry.publish(build(), WORDS, METRICS, LINEAGE)
    assert registry.retention(keep=3) == []
    assert registry.versions() == [name]


def test_retention_clears_what_a_dead_publisher_left(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    registry.publish(build(), WORDS, METRICS, LINEAGE, promote=False)
    (tmp_path / ".tmp-0002").mkdir()
    (tmp_path / ".claims" / "0002").touch()
    name = registry.publish(build(2), WORDS, METRICS, LINEAGE)
    assert parse_name(name)[0] == 3
    registry.retention(keep=1)
    assert {path.name for path in tmp_path.iterdir()} == {"CURRENT", ".claims", ".lock", name}


def test_retention_clears_uploads_that_never_finished(registry: Registry) -> None:
    dead = registry.publish(build(1), WORDS, METRICS, LINEAGE, promote=False)
    registry._fs.rm_file(f"{registry._root}/{dead}/{MANIFEST}")
    whole = registry.publish(build(2), WORDS, METRICS, LINEAGE)
    registry.retention(keep=1)
    assert registry.versions() == [whole]
    assert not registry._fs.exists(f"{registry._root}/{dead}")


def test_numpy_numbers_are_metrics_too(registry: Registry) -> None:
    name = registry.publish(build(), WORDS, {"hr@10": np.float32(0.5), "n": np.int64(3)}, {})
    assert registry.load(name).metrics == {"hr@10": 0.5, "n": 3}


def test_a_version_without_manifest_does_not_exist_yet(registry: Registry) -> None:
    whole = registry.publish(build(1), WORDS, METRICS, LINEAGE)
    partial = registry.publish(build(2), WORDS, METRICS, LINEAGE, promote=False)
    registry._fs.rm_file(f"{registry._root}/{partial}/{MANIFEST}")
    assert registry.versions() == [whole]
    with pytest.raises(VersionRefused, match="missing"):
        registry.load(partial)


@pytest.mark.parametrize("content", ["", "v1", "../v0001-00000001", "v0001-0000000g", "v0001-00000001\n"])
def test_a_damaged_pointer_is_refused(registry: Registry, content: str) -> None:
    registry.publish(build(), WORDS, METRICS, LINEAGE)
    registry._fs.pipe_file(f"{registry._root}/CURRENT", content.encode())
    with pytest.raises(VersionRefused, match="CURRENT"):
        registry.current()


def test_unknown_protocols_and_unwritable_places_are_refused(tmp_path: Path) -> None:
    with pytest.raises(VersionRefused, match="No model registry"):
        Registry("nosuchthing://bucket")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(VersionRefused, match="cannot be written"):
        Registry(tmp_path / "file").publish(build(), WORDS, METRICS, LINEAGE)
    with pytest.raises(VersionRefused, match="cannot be written"):
        Registry(tmp_path / "file").require_writable()


def test_trying_a_registry_out_leaves_nothing_in_it(registry: Registry) -> None:
    registry.require_writable()
    assert not registry._storage.entries()


@pytest.mark.parametrize("why", ["Could not connect to the endpoint URL", ""])
def test_whatever_a_storage_raises_is_a_refusal(registry: Registry, monkeypatch: pytest.MonkeyPatch, why: str) -> None:
    name = registry.publish(build(), WORDS, METRICS, LINEAGE)

    def broken(*_: object, **__: object) -> None:
        raise EndpointConnectionError(why)

    for method in ("cat_file", "ls", "info", "makedirs"):
        monkeypatch.setattr(registry._fs, method, broken)
    for use in (
        registry.current,
        registry.versions,
        registry.rollback,
        lambda: registry.load(name),
        lambda: registry.describe(name),
        lambda: registry.promote(name),
        lambda: registry.retention(1),
        lambda: registry.publish(build(), WORDS, METRICS, LINEAGE),
    ):
        with pytest.raises(VersionRefused, match=why or "EndpointConnectionError"):
            use()


def test_versions_are_not_missing_because_a_storage_cannot_tell(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.publish(build(), WORDS, METRICS, LINEAGE)

    def broken(*_: object, **__: object) -> None:
        raise EndpointConnectionError

    monkeypatch.setattr(registry._fs, "info", broken)
    with pytest.raises(VersionRefused, match="cannot be listed"):
        registry.versions()


def test_a_storage_that_cannot_be_opened_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def without_credentials(*_: object, **__: object) -> None:
        raise EndpointConnectionError("no credentials were found")

    monkeypatch.setattr(fsspec.core, "url_to_fs", without_credentials)
    with pytest.raises(VersionRefused, match="no credentials"):
        Registry("gs://models")
