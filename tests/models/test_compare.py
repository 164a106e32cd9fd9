from dataclasses import replace

import torch

from models.compare import compare, figures_of, flat
from tests.models.conftest import Build

WORDS = ["", "tea", "milk", "rye"]


def test_a_version_does_not_differ_from_itself(build_version: Build) -> None:
    _, version = build_version(vocabulary=WORDS)
    found = compare(version, version)
    assert not found.config and not found.added and not found.removed
    assert found.kept == 3
    assert set(found.moved) == set(version.weights)
    assert not any(found.moved.values())


def test_item_rows_are_matched_by_item(build_version: Build) -> None:
    _, old = build_version(vocabulary=WORDS)
    order = [0, 3, 1]  # rye and tea change places, milk leaves
    weights = dict(old.weights)
    for name in ("item_embedding.weight", "item_bias"):
        weights[name] = torch.cat((old.weights[name][order], torch.ones_like(old.weights[name][:1])))
    weights["projection.bias"] = old.weights["projection.bias"] * 2
    new = replace(old, name="v0002-00000001", vocabulary=["", "rye", "tea", "oats"], weights=weights)
    found = compare(old, new)
    assert (found.added, found.removed, found.kept) == (["oats"], ["milk"], 2)
    assert found.moved.pop("projection.bias") == 0.5
    assert not any(found.moved.values())


def test_other_shapes_and_settings_are_named(build_version: Build) -> None:
    (_, old), (_, new) = build_version(hidden=8), build_version(hidden=4)
    found = compare(old, new)
    assert found.config == {"hidden": (8, 4)}
    assert found.moved["cell.weight_hh_l0"] is None
    assert found.moved["kind_embedding.weight"] is not None


def test_figures_are_the_numbers_under_dotted_names(build_version: Build) -> None:
    metrics = {"ndcg@10": 0.1, "loss": [1.0], "gate": {"promoted": True, "events": 5, "reasons": ["x"]}}
    assert flat(metrics)["gate.reasons"] == ["x"]
    assert figures_of(metrics) == {"ndcg@10": 0.1, "gate.events": 5}
    _, version = build_version()
    found = compare(replace(version, metrics={"only_old": 1}), replace(version, metrics=metrics)).to_dict()
    assert found["metrics"] == {"only_old": (1, None), "ndcg@10": (None, 0.1), "gate.events": (None, 5)}
