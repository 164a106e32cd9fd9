import json
import multiprocessing
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import safetensors.torch
import torch

from models.network import Cell, Network, NetworkConfig
from models.registry import Registry, VersionRefused
from models.version import FILES, MANIFEST, pack, parse_name, unpack, verify, version_name

WORDS = ["", "tea", "té", "茶", 'c"h\\a']
METRICS = {"ndcg@10": 0.0661, "events": 12}
LINEAGE = {"data": "unit test", "seed": 7, "parent": None}


def build(seed: int = 1, cell: Cell = "gru", items: int = len(WORDS)) -> Network:
    torch.manual_seed(seed)
    return Network(NetworkConfig(items=items, cell=cell, hidden=6, embedding=4))


@pytest.fixture(params=["path", "file-url", "memory"])
def registry(request: pytest.FixtureRequest, tmp_path: Path) -> Registry:
    if request.param == "path":
        return Registry(tmp_path / "models [1]")  # brackets: the path must never be taken for a pattern
    if request.param == "file-url":
        return Registry(f"file://{tmp_path}/models")
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


def test_promoting_mends_a_damaged_pointer(registry: Registry) -> None:
    name = registry.publish(build(), WORDS, METRICS, LINEAGE)
    registry._fs.pipe_file(f"{registry._root}/CURRENT", b"nonsense")
    registry.promote(name)
    assert registry.promoted() == [name]


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
    names = [registry.publish(build(seed), WORDS, METRICS, LINEAGE) for seed in range(5)]
    registry.promote(names[1])
    assert registry.retention(keep=2) == [names[0], names[2]]
    assert registry.versions() == [names[1], names[3], names[4]]
    assert registry.load(names[1]).name == names[1]
    assert parse_name(registry.publish(build(9), WORDS, METRICS, LINEAGE))[0] == 6
    with pytest.raises(VersionRefused, match="at least the newest"):
        registry.retention(keep=0)


def test_retention_of_fewer_versions_than_kept_deletes_nothing(registry: Registry) -> None:
    assert registry.retention(keep=3) == []
    name = registry.publish(build(), WORDS, METRICS, LINEAGE)
    assert registry.retention(keep=3) == []
    assert registry.versions() == [name]


def test_retention_clears_what_a_dead_publisher_left(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    registry.publish(build(), WORDS, METRICS, LINEAGE)
    (tmp_path / ".tmp-0002").mkdir()
    (tmp_path / ".claims" / "0002").touch()
    name = registry.publish(build(2), WORDS, METRICS, LINEAGE)
    assert parse_name(name)[0] == 3
    registry.retention(keep=1)
    assert {path.name for path in tmp_path.iterdir()} == {"CURRENT", ".claims", name}


def test_retention_clears_uploads_that_never_finished(registry: Registry) -> None:
    dead = registry.publish(build(1), WORDS, METRICS, LINEAGE, promote=False)
    registry._fs.rm_file(f"{registry._root}/{dead}/{MANIFEST}")
    whole = registry.publish(build(2), WORDS, METRICS, LINEAGE)
    registry.retention(keep=1)
    assert registry.versions() == [whole]
    assert not registry._fs.exists(f"{registry._root}/{dead}")


def test_fingerprint_is_the_first_four_bytes_of_the_weights_sha256(tmp_path: Path) -> None:
    import hashlib

    name = Registry(tmp_path).publish(build(), WORDS, METRICS, LINEAGE)
    digest = hashlib.sha256((tmp_path / name / "weights.safetensors").read_bytes()).digest()
    assert name.endswith(digest[:4].hex())


def test_the_same_network_has_the_same_fingerprint_and_another_vocabulary_another() -> None:
    first, second = (pack(build(), WORDS, METRICS, LINEAGE) for _ in range(2))
    swapped = pack(build(), ["", *WORDS[:0:-1]], METRICS, LINEAGE)
    assert version_name(1, first) == version_name(1, second) != version_name(1, swapped)


def test_numpy_numbers_are_metrics_too(registry: Registry) -> None:
    name = registry.publish(build(), WORDS, {"hr@10": np.float32(0.5), "n": np.int64(3)}, {})
    assert registry.load(name).metrics == {"hr@10": 0.5, "n": 3}


# --- damage --------------------------------------------------------------------------------------------------------


def rewrite(folder: Path, name: str, change: Callable[[bytes], bytes]) -> None:
    """Change a file and its manifest entry alike, as a faulty writer would."""
    import hashlib

    path = folder / name
    data = change(path.read_bytes())
    path.write_bytes(data)
    manifest = json.loads((folder / MANIFEST).read_bytes())
    manifest[name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / MANIFEST).write_text(json.dumps(manifest))


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda data: data[: len(data) // 2], "bytes, manifest.json says"),
        (lambda data: data[:-1] + bytes([data[-1] ^ 1]), "content has changed"),
        (None, "is missing"),
    ],
    ids=["truncated", "bit-flipped", "missing"],
)
def test_damaged_files_are_refused(
    tmp_path: Path, name: str, damage: Callable[[bytes], bytes] | None, why: str
) -> None:
    registry = Registry(tmp_path)
    version = registry.publish(build(), WORDS, METRICS, LINEAGE)
    path = tmp_path / version / name
    if damage is None:
        path.unlink()
    else:
        path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(VersionRefused) as caught:
        registry.load(version)
    assert why in caught.value.why
    assert name in caught.value.why
    assert version in caught.value.what
    assert caught.value.fix


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"[]", b"{}", b"[" * 100_000])
def test_a_damaged_manifest_is_refused(tmp_path: Path, content: bytes) -> None:
    registry = Registry(tmp_path)
    version = registry.publish(build(), WORDS, METRICS, LINEAGE)
    (tmp_path / version / MANIFEST).write_bytes(content)
    with pytest.raises(VersionRefused, match=MANIFEST):
        registry.load(version)


def test_a_version_without_manifest_does_not_exist_yet(registry: Registry) -> None:
    whole = registry.publish(build(1), WORDS, METRICS, LINEAGE)
    partial = registry.publish(build(2), WORDS, METRICS, LINEAGE, promote=False)
    registry._fs.rm_file(f"{registry._root}/{partial}/{MANIFEST}")
    assert registry.versions() == [whole]
    with pytest.raises(VersionRefused, match="missing"):
        registry.load(partial)


def edit(change: Callable[[Any], Any]) -> Callable[[bytes], bytes]:
    return lambda data: json.dumps(change(json.loads(data))).encode()


@pytest.mark.parametrize(
    ("name", "change", "why"),
    [
        ("config.json", edit(lambda c: {**c, "hidden": 7}), r"shape \(\d+, \d+\), not"),
        ("config.json", edit(lambda c: {**c, "hidden": 10**9}), "hidden is 1000000000"),
        ("config.json", edit(lambda c: {**c, "cell": "lstm"}), "shape"),
        ("config.json", edit(lambda c: {**c, "cell": "rnn"}), "cell 'rnn'"),
        ("config.json", edit(lambda c: {**c, "items": 4}), "5 rows, the network 4"),
        ("config.json", edit(lambda c: {**c, "depth": 2}), "unknown fields"),
        ("config.json", edit(lambda c: {"format": 1, "cell": "gru"}), "missing or unknown fields"),
        ("config.json", edit(lambda c: {**c, "format": 2}), "format is 2"),
        ("config.json", edit(lambda c: [c]), "not an object"),
        ("config.json", lambda data: data[:-3], "not JSON"),
        ("vocabulary.json", edit(lambda v: [*v[:-1], "tea"]), "twice"),
        ("vocabulary.json", edit(lambda v: [*v, "more"]), "6 rows"),
        ("vocabulary.json", edit(lambda v: ["x", *v[1:]]), "row 0"),
        ("vocabulary.json", edit(lambda v: [*v[:-1], 3]), "not a list of item ids"),
        ("vocabulary.json", edit(dict.fromkeys), "not a list of item ids"),
        ("metrics.json", edit(lambda m: 3), "holds a int"),
    ],
)
def test_files_that_do_not_fit_together_are_refused(
    tmp_path: Path, name: str, change: Callable[[bytes], bytes], why: str
) -> None:
    registry = Registry(tmp_path)
    version = registry.publish(build(), WORDS, METRICS, LINEAGE)
    rewrite(tmp_path / version, name, change)
    with pytest.raises(VersionRefused, match=why):
        registry.load(version)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda w: {**w, "item_bias": torch.full_like(w["item_bias"], torch.nan)}, "item_bias holds values"),
        (lambda w: {**w, "item_bias": w["item_bias"].half()}, "item_bias is torch.float16"),
        (lambda w: {**w, "item_bias": w["item_bias"][1:]}, "item_bias has shape"),
        (lambda w: {k: v for k, v in w.items() if k != "gap_weight"}, "gap_weight is missing"),
        (lambda w: {**w, "extra": torch.zeros(1)}, "extra is unknown"),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]], why: str
) -> None:
    files = pack(build(), WORDS, METRICS, LINEAGE)
    files["weights.safetensors"] = safetensors.torch.save(change(dict(build().state_dict())))
    with pytest.raises(VersionRefused, match=why):
        unpack(version_name(1, files), files)


def test_weights_that_are_not_safetensors_are_refused() -> None:
    files = pack(build(), WORDS, METRICS, LINEAGE) | {"weights.safetensors": b"\x80\x04pickle"}
    with pytest.raises(VersionRefused, match="cannot be read"):
        unpack(version_name(1, files), files)


def test_a_version_under_a_foreign_name_is_refused(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    version = registry.publish(build(), WORDS, METRICS, LINEAGE)
    shutil.copytree(tmp_path / version, tmp_path / "v0002-00c0ffee")
    with pytest.raises(VersionRefused, match="fingerprint"):
        registry.load("v0002-00c0ffee")


def test_every_single_changed_byte_is_noticed() -> None:
    files = pack(build(), WORDS, METRICS, LINEAGE)
    manifest = files.pop(MANIFEST)
    for name, data in files.items():
        for position in range(0, len(data), max(1, len(data) // 40)):
            changed = data[:position] + bytes([data[position] ^ 0x10]) + data[position + 1 :]
            with pytest.raises(VersionRefused):
                verify("v0001-00000001", manifest, {name: changed})


@pytest.mark.parametrize("content", ["", "v1", "../v0001-00000001", "v0001-0000000g", "v0001-00000001\n"])
def test_a_damaged_pointer_is_refused(registry: Registry, content: str) -> None:
    registry.publish(build(), WORDS, METRICS, LINEAGE)
    registry._fs.pipe_file(f"{registry._root}/CURRENT", content.encode())
    with pytest.raises(VersionRefused, match="CURRENT"):
        registry.current()


@pytest.mark.parametrize(
    ("words", "why"),
    [(WORDS[:-1], "4 rows"), (["x", *WORDS[1:]], "row 0"), ([*WORDS[:-1], "tea"], "twice"), ("abcde", "not a list")],
)
def test_publishing_what_could_not_be_loaded_is_refused(tmp_path: Path, words: Any, why: str) -> None:
    with pytest.raises(VersionRefused, match=why):
        Registry(tmp_path).publish(build(), words, METRICS, LINEAGE)
    network = build()
    with torch.no_grad():
        network.gap_weight[0] = torch.inf
    with pytest.raises(VersionRefused, match="gap_weight"):
        Registry(tmp_path).publish(network, WORDS, METRICS, LINEAGE)
    with pytest.raises(VersionRefused, match="JSON"):
        Registry(tmp_path).publish(build(), WORDS, {"hr": float("nan")}, LINEAGE)
    with pytest.raises(VersionRefused, match="JSON"):
        Registry(tmp_path).publish(build(), WORDS, METRICS, {"where": tmp_path})
    assert list(tmp_path.iterdir()) == []


def test_unknown_protocols_and_unwritable_places_are_refused(tmp_path: Path) -> None:
    with pytest.raises(VersionRefused, match="No model registry"):
        Registry("nosuchthing://bucket")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(VersionRefused, match="cannot be written"):
        Registry(tmp_path / "file").publish(build(), WORDS, METRICS, LINEAGE)


# --- concurrency ---------------------------------------------------------------------------------------------------


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
