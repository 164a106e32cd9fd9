"""Two model versions side by side: configuration, figures, vocabulary, and how far the weights moved."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

import torch
from torch import Tensor

from models.version import Version

_BY_ITEM: Final = ("item_embedding.weight", "item_bias")  # one row per item: rows are matched by item, not by number


@dataclass(frozen=True, slots=True)
class Difference:
    """What changed from one version to another.

    Attributes:
        old: Name of the one.
        new: Name of the other.
        config: Settings of the network that differ: old and new value.
        metrics: Every figure either has, nested ones under dotted names: old and new value, None where it has none.
        added: Items only the new one knows, in its order.
        removed: Items only the old one knows, in its order.
        kept: Number of items both know.
        moved: By parameter, the norm of the change over the larger of the two norms: 0 unchanged, about 1.4 unrelated;
            item parameters over the items both know. None where the shapes differ.
    """

    old: str
    new: str
    config: dict[str, tuple[Any, Any]]
    metrics: dict[str, tuple[float | None, float | None]]
    added: list[str]
    removed: list[str]
    kept: int
    moved: dict[str, float | None]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def compare(old: Version, new: Version) -> Difference:
    """What changed from ``old`` to ``new``."""
    before, after = old.config.to_dict(), new.config.to_dict()
    figures = figures_of(old.metrics), figures_of(new.metrics)
    rows_old = {item: row for row, item in enumerate(old.vocabulary)}
    rows_new = {item: row for row, item in enumerate(new.vocabulary)}
    both = [item for item in old.vocabulary if item in rows_new]
    places = [torch.tensor([rows[item] for item in both]) for rows in (rows_old, rows_new)]
    moved: dict[str, float | None] = {}
    for name in old.weights.keys() | new.weights.keys():
        one, other = old.weights.get(name), new.weights.get(name)
        if one is not None and other is not None and name in _BY_ITEM:
            one, other = one[places[0]], other[places[1]]
        moved[name] = None if one is None or other is None or one.shape != other.shape else _distance(one, other)
    return Difference(
        old.name,
        new.name,
        {name: (before.get(name), after.get(name)) for name in before if before.get(name) != after.get(name)},
        {name: (figures[0].get(name), figures[1].get(name)) for name in dict.fromkeys((*figures[0], *figures[1]))},
        [item for item in new.vocabulary if item not in rows_old],
        [item for item in old.vocabulary if item not in rows_new],
        len(both) - 1,  # the unknown item is in every vocabulary
        dict(sorted(moved.items())),
    )


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values under dotted names.

    Example:
        >>> flat({"ndcg@10": 0.1, "gate": {"events": 50}})
        {'ndcg@10': 0.1, 'gate.events': 50}
    """
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = value
    return found


def figures_of(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The numbers among a version's metrics, nested ones under dotted names."""
    return {
        name: value
        for name, value in flat(metrics).items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def _distance(one: Tensor, other: Tensor) -> float:
    larger = max(float(one.norm()), float(other.norm()))
    return round(float((other - one).norm()) / larger, 6) if larger else 0.0
