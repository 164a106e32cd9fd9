import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from models.registry import Registry, VersionRefused
from models.version import FILES, MANIFEST, pack, unpack, verify, version_name
from tests.models.versions import LINEAGE, METRICS, WORDS, build


def test_fingerprint_is_the_first_four_bytes_of_the_weights_sha256(tmp_path: Path) -> None:
    name = Registry(tmp_path).publish(build(), WORDS, METRICS, LINEAGE)
    digest = hashlib.sha256((tmp_path / name / "weights.safetensors").read_bytes()).digest()
    assert name.endswith(digest[:4].hex())


def test_the_same_network_has_the_same_fingerprint_and_another_vocabulary_another() -> None:
    first, second = (pack(build(), WORDS, METRICS, LINEAGE) for _ in range(2))
    swapped = pack(build(), ["", *WORDS[:0:-1]], METRICS, LINEAGE)
    assert version_name(1, first) == version_name(1, second) != version_name(1, swapped)


def rewrite(folder: Path, name: str, change: Callable[[bytes], bytes]) -> None:
    """Change a file and its manifest entry alike, as a faulty writer would."""
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


def test_a_version_of_a_release_that_knew_no_repeats_is_read_as_one_that_treats_them_alike() -> None:
    files, weights = pack(build(), WORDS, METRICS, LINEAGE), dict(build().state_dict())
    del weights["repeat_weight"]
    files["weights.safetensors"] = safetensors.torch.save(weights)
    version = unpack(version_name(1, files), files)
    assert not version.network().repeats.any()


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
