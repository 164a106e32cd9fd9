from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from models.network import Cell, Network, NetworkConfig
from models.vocabulary import DAY_MS, VocabularySettings, grow, transplant
from state.replay_buffer import ReplayBuffer
from state.replay_sample import Sample


def sample_of(directory: Path, rows: list[tuple[str, str, int]]) -> Sample:
    with ReplayBuffer(directory) as buffer:
        users, items, times = zip(*rows, strict=True)
        buffer.append("clicks", 0, users, items, np.zeros(len(rows), np.uint8), times, np.arange(len(rows)))
        return buffer.sample(len(rows), 0, 0)


def network_of(items: int, cell: Cell = "gru") -> Network:
    torch.manual_seed(3)
    network = Network(NetworkConfig(items=items, cell=cell, hidden=8, embedding=6, dropout=0.0)).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_()
    return network


ROWS = [("u", "a", 0), ("u", "new", 1), ("u", "b", 2), ("v", "rare", 3), ("v", "c", 4), ("v", "c", 5), ("w", "lone", 6)]


def test_kept_items_keep_their_order_and_new_ones_follow_by_count(tmp_path: Path) -> None:
    growth = grow(["", "c", "gone", "a"], sample_of(tmp_path, [*ROWS, ("x", "rare", 7)]), VocabularySettings())
    assert growth.vocabulary == ["", "c", "gone", "a", "rare", "new", "b", "lone"]
    assert growth.kept.tolist() == [0, 1, 2, 3]
    assert (growth.added, growth.expired) == (4, 0)


def test_rows_of_items_agree_with_the_vocabulary(tmp_path: Path) -> None:
    sample = sample_of(tmp_path, ROWS)
    growth = grow(["", "c", "a"], sample, VocabularySettings(min_events=2))
    assert growth.vocabulary == ["", "c", "a"]
    for item_id, row in zip(sample.item_ids, growth.row_of_item, strict=True):
        assert row == (growth.vocabulary.index(item_id) if item_id in growth.vocabulary else 0)


def test_idle_items_leave_and_forgotten_ones_too(tmp_path: Path) -> None:
    rows = [("u", "old", 0), ("u", "a", 20 * DAY_MS), ("v", "b", 21 * DAY_MS)]
    growth = grow(["", "old", "forgotten", "a"], sample_of(tmp_path, rows), VocabularySettings(idle_days=10))
    assert growth.vocabulary == ["", "a", "b"]
    assert growth.kept.tolist() == [0, 3]
    assert growth.expired == 2


def test_items_stay_that_a_buffer_begun_after_the_model_does_not_know(tmp_path: Path) -> None:
    days = [("u", f"i{number}", number % 9 * DAY_MS + 1) for number in range(200)]
    previous = ["", "of the table", "i3"]
    settings = VocabularySettings(idle_days=10)
    for rows in (days, [*days, ("u", "wrong clock", 0), ("u", "i3", 10 * DAY_MS + 1)]):
        growth = grow(previous, sample_of(tmp_path / str(len(rows)), rows), settings)
        assert growth.vocabulary[:3] == previous and growth.expired == 0
    later = [*days, *(("u", f"i{number}", 15 * DAY_MS) for number in range(100))]  # half of those it knows are idle
    assert "of the table" not in grow(previous, sample_of(tmp_path / "later", later), settings).vocabulary


def test_the_vocabulary_is_bounded_by_age(tmp_path: Path) -> None:
    rows = [("u", f"i{number}", number) for number in range(50)]
    growth = grow(["", "i3", "i49", "unknown"], sample_of(tmp_path, rows), VocabularySettings(max_items=10))
    assert len(growth.vocabulary) == 11
    assert set(growth.vocabulary[1:]) == {f"i{number}" for number in range(40, 50)}


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_kept_rows_and_all_other_weights_are_carried_over_exactly(tmp_path: Path, cell: Cell) -> None:
    rows = [("u", "idle", 0), *((u, i, 2 * DAY_MS + t) for u, i, t in ROWS)]
    sample, before = sample_of(tmp_path, rows), network_of(5, cell)
    growth = grow(["", "c", "gone", "a", "gone too"], sample, VocabularySettings(idle_days=1))
    after = transplant(before, growth, sample, seed=1)
    assert growth.vocabulary[: len(growth.kept)] == ["", "c", "a"]
    kept = torch.from_numpy(growth.kept)
    first = len(kept)
    for name, weight in before.state_dict().items():
        found = after.state_dict()[name]
        if name in ("item_embedding.weight", "item_bias"):
            assert torch.equal(found[:first], weight[kept])
        else:
            assert torch.equal(found, weight)
    items = torch.tensor([[1, 2]])
    zeros = torch.zeros_like(items)
    old, _ = before.sequence(kept[items], zeros, zeros)
    new, _ = after.sequence(items, zeros, zeros)
    assert torch.equal(old, new)


def test_a_new_item_starts_where_its_company_is(tmp_path: Path) -> None:
    sample, before = sample_of(tmp_path, ROWS), network_of(4)
    growth = grow(["", "a", "b", "c"], sample, VocabularySettings())
    table = transplant(before, growth, sample, seed=1).item_embedding.weight.detach()
    old = before.item_embedding.weight.detach()
    row = {item: number for number, item in enumerate(growth.vocabulary)}
    torch.testing.assert_close(table[row["new"]], (old[1] + old[2]) / 2, atol=0.1, rtol=0)
    torch.testing.assert_close(table[row["rare"]], old[3], atol=0.1, rtol=0)  # c one and two steps behind it
    torch.testing.assert_close(table[row["lone"]], old[0], atol=0.1, rtol=0)  # no company: the unknown item
    assert not torch.equal(table[row["lone"]], old[0])  # but not the same as another without company


def test_the_bias_of_a_new_item_is_on_the_scale_of_the_others(tmp_path: Path) -> None:
    rows = [("u", "a", 0)] * 100 + [("u", "b", 0)] * 10 + [("u", "like a", 0)] * 100 + [("u", "like b", 0)] * 10
    sample, before = sample_of(tmp_path, [(u, i, n) for n, (u, i, _) in enumerate(rows)]), network_of(3)
    with torch.no_grad():
        before.item_bias.copy_(torch.log1p(torch.tensor([0.0, 100.0, 10.0])) - 5)
    growth = grow(["", "a", "b"], sample, VocabularySettings())
    bias = transplant(before, growth, sample, seed=0).item_bias
    torch.testing.assert_close(bias[3:], bias[1:3], atol=1e-5, rtol=0)


def test_the_same_seed_gives_the_same_rows(tmp_path: Path) -> None:
    sample, before = sample_of(tmp_path, ROWS), network_of(2)
    growth = grow(["", "a"], sample, VocabularySettings())
    first, again, other = (transplant(before, growth, sample, seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["item_embedding.weight"], other["item_embedding.weight"])


def test_an_empty_buffer_changes_nothing(tmp_path: Path) -> None:
    sample = replace(sample_of(tmp_path, ROWS), item_ids=[], item_counts=np.zeros(0, np.int64))
    empty = replace(sample, item_last_ms=np.zeros(0, np.int64), users=sample.users[:0], items=sample.items[:0])
    empty = replace(empty, times_ms=empty.times_ms[:0])
    growth = grow(["", "a", "b"], empty, VocabularySettings())
    assert growth.vocabulary == ["", "a", "b"]
    before = network_of(3)
    after = transplant(before, growth, empty, 0).state_dict()
    assert all(torch.equal(weight, after[name]) for name, weight in before.state_dict().items())
