"""One model version as a value and as files: names, packing, and the checks that refuse a damaged one."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from models.network import RECENT, Network, NetworkConfig
from state.errors import RecstreamError

FORMAT: Final = 1
WEIGHTS: Final = "weights.safetensors"
HEADS: Final = ("config.json", "metrics.json", "lineage.json")
FILES: Final = (WEIGHTS, "vocabulary.json", *HEADS)
MANIFEST: Final = "manifest.json"
REMEDY: Final = "Serve another version (`recstream models list` shows them) or publish this one again"
_NAME: Final = re.compile(r"v(\d{4,9})-([0-9a-f]{8})")


class VersionRefused(RecstreamError):
    """A model version is missing, damaged or does not fit; the one being served stays in place."""


class StorageRefused(VersionRefused):
    """Storage does not answer, which says nothing about the version."""


@dataclass(frozen=True, slots=True)
class Summary:
    """What a version says of itself without its weights."""

    name: str
    number: int
    fingerprint: int
    config: NetworkConfig
    metrics: dict[str, Any]
    lineage: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Version:
    """A verified model version.

    Attributes:
        name: ``v0007-1a2b3c4d``.
        number: 7; larger is newer.
        fingerprint: 0x1a2b3c4d, never 0: names in a user's record the version its hidden vector was made by.
        config: Shape of the network.
        vocabulary: Item id of every row; row 0 is ``""``, the unknown item.
        weights: Tensors by the parameter names of `Network`, float32, finite.
        metrics: Validation figures of the version.
        lineage: Where it came from: data, seed, parent version.
    """

    name: str
    number: int
    fingerprint: int
    config: NetworkConfig
    vocabulary: list[str]
    weights: dict[str, Tensor]
    metrics: dict[str, Any]
    lineage: dict[str, Any]

    def network(self) -> Network:
        """A network with these weights, in evaluation mode."""
        network = Network(self.config)
        network.load_state_dict(self.weights)
        return network.eval()


def is_version_name(name: str) -> bool:
    """Whether a directory entry is named like a version."""
    return _NAME.fullmatch(name) is not None


def parse_name(name: str) -> tuple[int, int]:
    """Number and fingerprint of ``v0007-1a2b3c4d``.

    Raises:
        VersionRefused: It is not the name of a version.
    """
    match = _NAME.fullmatch(name)
    if not match:
        what = f"{name[:80]!r} is not the name of a version"
        raise VersionRefused(what, "", "Names look like v0007-1a2b3c4d; `recstream models list` shows them")
    return int(match[1]), int(match[2], 16)


def version_name(number: int, files: Mapping[str, bytes]) -> str:
    """The name of packed files under a number."""
    return f"v{number:04d}-{_fingerprint(files[WEIGHTS]):08x}"


def refusal(version: str, why: str) -> VersionRefused:
    """The error for one version, with the usual remedy."""
    return VersionRefused(_subject(version), why, REMEDY)


def pack(
    network: Network, vocabulary: Sequence[str], metrics: Mapping[str, Any], lineage: Mapping[str, Any]
) -> dict[str, bytes]:
    """The files of a version by name, the manifest last.

    Raises:
        VersionRefused: Network and vocabulary do not fit, a weight is not finite, or a value is not JSON.
    """
    subject = "This network cannot be published"
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    _check_vocabulary(vocabulary, network.config, subject)
    _check_weights(weights, network.config, subject)
    head = _dump({"format": FORMAT, **network.config.to_dict()}, subject)
    words = _dump(list(vocabulary), subject)
    # The digest of configuration and vocabulary rides in the weights file, so the fingerprint covers all three:
    # the same weights under a permuted vocabulary are another version.
    digest = hashlib.sha256(head + words).hexdigest()
    payload = safetensors.torch.save(weights, {"recstream": digest})
    evidence = _dump(dict(metrics), subject), _dump(dict(lineage), subject)
    files = dict(zip(FILES, (payload, words, head, *evidence), strict=True))
    manifest = {name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in files.items()}
    return {**files, MANIFEST: _dump(manifest, subject)}


def verify(version: str, manifest: bytes, files: Mapping[str, bytes]) -> None:
    """Check files against the manifest's sizes and sha256.

    Raises:
        VersionRefused: A file is not listed, truncated or changed.
    """
    listing = _mapping(manifest, MANIFEST, version)
    for name, data in files.items():
        entry = listing.get(name)
        if not isinstance(entry, dict) or not {"bytes", "sha256"} <= entry.keys():
            raise refusal(version, f"{MANIFEST} does not list {name}")
        if len(data) != entry["bytes"]:
            raise refusal(version, f"{name} has {len(data)} bytes, {MANIFEST} says {entry['bytes']}")
        if hashlib.sha256(data).hexdigest() != entry["sha256"]:
            raise refusal(version, f"the sha256 of {name} is not the one in {MANIFEST}: its content has changed")


def summarize(version: str, files: Mapping[str, bytes]) -> Summary:
    """A summary of verified `HEADS` files.

    Raises:
        VersionRefused: A file does not hold what it should.
    """
    config, metrics, lineage = (_mapping(files[name], name, version) for name in HEADS)
    return Summary(version, *parse_name(version), _config(config, version), metrics, lineage)


def unpack(version: str, files: Mapping[str, bytes]) -> Version:
    """The version in verified `FILES`: fingerprint, configuration, vocabulary and weights checked.

    Raises:
        VersionRefused: A file does not hold what it should, or they do not fit together.
    """
    summary, payload = summarize(version, files), files[WEIGHTS]
    if _fingerprint(payload) != summary.fingerprint:
        raise refusal(version, "its name does not carry the fingerprint of its weights")
    vocabulary = _parse(files["vocabulary.json"], "vocabulary.json", version)
    _check_vocabulary(vocabulary, summary.config, _subject(version))
    try:
        weights = safetensors.torch.load(payload)
    except (SafetensorError, ValueError, KeyError) as exc:
        raise refusal(version, f"{WEIGHTS} cannot be read ({exc})") from exc
    weights.setdefault("repeat_weight", torch.zeros(RECENT))  # earlier releases knew none
    _check_weights(weights, summary.config, _subject(version))
    return Version(
        version,
        summary.number,
        summary.fingerprint,
        summary.config,
        vocabulary,
        weights,
        summary.metrics,
        summary.lineage,
    )


def _subject(version: str) -> str:
    return f"Model version {version} is refused"


def _fingerprint(weights: bytes) -> int:
    return int.from_bytes(hashlib.sha256(weights).digest()[:4], "big") or 1  # 0 means "no model" in user records


def _dump(value: object, subject: str) -> bytes:
    def plain(part: object) -> object:
        if isinstance(part, np.generic):
            return part.item()
        message = f"{type(part).__name__} is not a JSON value"
        raise TypeError(message)

    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, default=plain).encode()
    except (TypeError, ValueError) as exc:
        raise VersionRefused(subject, str(exc), "Give metrics, lineage and ids as plain JSON values") from exc


def _parse(data: bytes, name: str, version: str) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as exc:
        raise refusal(version, f"{name} is not JSON ({exc})") from exc


def _mapping(data: bytes, name: str, version: str) -> dict[str, Any]:
    value = _parse(data, name, version)
    if not isinstance(value, dict):
        raise refusal(version, f"{name} holds a {type(value).__name__}, not an object")
    return value


def _config(head: dict[str, Any], version: str) -> NetworkConfig:
    if head.get("format") != FORMAT:
        why = f"its format is {head.get('format')!r}, this release reads {FORMAT}"
        raise VersionRefused(_subject(version), why, "Install the recstream release that wrote it, or publish again")
    try:
        return NetworkConfig(**{key: value for key, value in head.items() if key != "format"})
    except RecstreamError as exc:
        raise refusal(version, f"config.json: {exc.why}") from exc
    except TypeError as exc:
        raise refusal(version, f"config.json has missing or unknown fields ({exc})") from exc


def _check_vocabulary(vocabulary: object, config: NetworkConfig, subject: str) -> None:
    why = ""
    if not isinstance(vocabulary, list | tuple) or not all(isinstance(word, str) for word in vocabulary):
        why = "the vocabulary is not a list of item ids"
    elif len(vocabulary) != config.items:
        why = f"the vocabulary has {len(vocabulary)} rows, the network {config.items}"
    elif vocabulary[0] != "" or "" in vocabulary[1:]:
        why = 'row 0 of the vocabulary, and no other, must be "", the unknown item'
    elif len(set(vocabulary)) != len(vocabulary):
        why = "the vocabulary names an item twice"
    if why:
        raise VersionRefused(subject, why, REMEDY)


def _check_weights(weights: Mapping[str, Tensor], config: NetworkConfig, subject: str) -> None:
    with torch.device("meta"):  # shapes only: a configuration that is nonsense must not allocate gigabytes
        expected = Network(config).state_dict()
    wrong = [f"{name} is missing" for name in expected.keys() - weights.keys()]
    wrong += [f"{name} is unknown" for name in weights.keys() - expected.keys()]
    for name in expected.keys() & weights.keys():
        tensor, shape = weights[name], expected[name].shape
        if tensor.shape != shape:
            wrong.append(f"{name} has shape {tuple(tensor.shape)}, not {tuple(shape)}")
        elif tensor.dtype != torch.float32:
            wrong.append(f"{name} is {tensor.dtype}, not torch.float32")
        elif not torch.isfinite(tensor).all():
            wrong.append(f"{name} holds values that are not finite")
    if wrong:
        raise VersionRefused(subject, "; ".join(sorted(wrong)), REMEDY)
