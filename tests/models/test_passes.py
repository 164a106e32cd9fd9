import numpy as np
import pytest
import torch

from models.network import Cell, Network, NetworkConfig
from models.passes import initial_states, lay_out
from models.sequences import Histories, batch


def random_histories(lengths: list[int], seed: int = 0) -> Histories:
    rng = np.random.default_rng(seed)
    starts = np.concatenate(([0], np.cumsum(lengths))).astype(np.int64)
    size = int(starts[-1])
    # Items count upward, so that an event is known by its item.
    items, kinds = np.arange(1, size + 1, dtype=np.int32), rng.integers(0, 3, size).astype(np.uint8)
    return Histories(items, kinds, rng.integers(0, 999, size), np.arange(size, dtype=np.int64), starts)


def test_a_pass_shows_every_transition_once_and_differs_from_the_next() -> None:
    source, rng = random_histories([1, 2, 50, 7, 120, 3]), np.random.default_rng(4)
    seen = []
    for _ in range(2):
        pairs = []
        plan = lay_out(source, 20, 64, rng)
        for numbers in plan.batches:
            data = batch(source, plan.windows[numbers])
            real = data.targets > 0
            assert (data.targets[real] == data.items[real] + 1).all()
            assert (data.kinds[real] == source.kinds[data.items[real] - 1]).all()
            assert (data.gaps_seconds[real] == source.gaps_seconds[data.items[real] - 1]).all()
            assert not data.items[~real].any() and not data.gaps_seconds[~real].any() and not data.kinds[~real].any()
            pairs.append(data.targets[real])
        seen.append(np.concatenate(pairs))
    targets = sorted(set(range(1, 184)) - set((source.starts[:-1] + 1).tolist()))
    assert sorted(seen[0].tolist()) == sorted(seen[1].tolist()) == targets
    assert seen[0].tolist() != seen[1].tolist()


@pytest.mark.parametrize("lengths", [[1], [1, 1, 1]])
def test_histories_of_one_event_have_no_batches(lengths: list[int]) -> None:
    assert lay_out(random_histories(lengths), 10, 100, np.random.default_rng(0)).batches == []


def test_windows_without_a_wanted_target_are_in_no_batch() -> None:
    source = random_histories([90, 40])
    wanted = np.zeros(130, np.bool_)
    wanted[[70, 71, 129]] = True
    plan = lay_out(source, 20, 64, np.random.default_rng(1), wanted)
    learnt = [batch(source, plan.windows[numbers], wanted).targets for numbers in plan.batches]
    assert sorted(np.concatenate([part[part > 0] for part in learnt]).tolist()) == [71, 72, 130]
    assert sum(map(len, plan.batches)) <= 3
    assert len(plan.windows) > 3  # the others are there to lead to a state


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_windows_start_from_the_users_true_state(cell: Cell) -> None:
    torch.manual_seed(0)
    source = random_histories([1, 2, 95, 7, 240, 11])
    network = Network(NetworkConfig(items=len(source) + 1, cell=cell, hidden=8, embedding=4, dropout=0.5)).train()
    plan = lay_out(source, 20, 64, np.random.default_rng(3))
    states = initial_states(network, source, plan.windows)
    assert network.training
    network.eval()
    for (begin, _), state in zip(plan.windows.tolist(), states, strict=True):
        first = int(source.starts[np.searchsorted(source.starts, begin, side="right") - 1])
        expected = network.initial_state(1)
        if begin > first:
            columns = (source.items, source.kinds.astype(np.int64), source.gaps_seconds)
            inputs = (torch.from_numpy(column[None, first:begin].astype(np.int64)) for column in columns)
            with torch.no_grad():
                _, expected = network.sequence(*inputs)
        torch.testing.assert_close(state, expected[0], rtol=1e-4, atol=1e-6)


def test_what_stands_in_front_of_the_targets_is_only_led_through() -> None:
    """Few targets at the end of long histories: windows of some steps, which tile, with the same targets as before."""
    source = random_histories([95, 100, 30, 7])
    wanted = np.zeros(len(source), np.bool_)
    wanted[[90, 94, 194, 224, 229, 231]] = True
    plan = lay_out(source, 100, 400, np.random.default_rng(1), wanted)
    learnt = [batch(source, plan.windows[numbers], wanted).targets for numbers in plan.batches]
    assert sorted(np.concatenate([part[part > 0] for part in learnt]).tolist()) == [91, 95, 195, 225, 230, 232]
    assert sum(int(plan.windows[numbers, 1].sum()) for numbers in plan.batches) <= 14 + 10 + 20 + 7 + 10
    for begin, end in zip(source.starts[:-1], source.starts[1:], strict=True):
        own = plan.windows[(plan.windows[:, 0] >= begin) & (plan.windows[:, 0] < end)]
        assert own[0, 0] == begin and own[-1].sum() == end - 1
        assert (own[1:, 0] == own[:-1].sum(1)).all()
