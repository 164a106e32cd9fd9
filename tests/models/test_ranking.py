import numpy as np
import pytest
import torch

from models import ranking
from models.network import Cell, Network, NetworkConfig
from models.ranking import popularity_ranks, quality, ranks
from models.sequences import Histories

ITEMS = 30


def random_histories(lengths: list[int], seed: int = 0) -> Histories:
    rng = np.random.default_rng(seed)
    starts = np.concatenate(([0], np.cumsum(lengths))).astype(np.int64)
    size = int(starts[-1])
    items, kinds = rng.integers(0, ITEMS, size).astype(np.int32), rng.integers(0, 3, size).astype(np.uint8)
    return Histories(items, kinds, rng.integers(0, 9999, size), np.arange(size, dtype=np.int64), starts)


@torch.no_grad()
def one_by_one(network: Network, source: Histories, wanted: np.ndarray) -> list[float]:  # type: ignore[type-arg]
    found = []
    for start, end in zip(source.starts[:-1], source.starts[1:], strict=True):
        for event in range(start + 1, end):
            if wanted[event] and source.items[event]:
                past = slice(start, event)
                columns = (source.items[past], source.kinds[past].astype(np.int64), source.gaps_seconds[past])
                _, state = network.sequence(*(torch.from_numpy(column)[None] for column in columns))
                scores = network.scores(state[:, : network.config.hidden])[0]
                score = scores[source.items[event]]
                found.append(1 + float((scores > score).sum()) + (float((scores == score).sum()) - 1) / 2)
    return found


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_ranks_equal_those_of_one_user_and_event_at_a_time(cell: Cell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranking, "_STEPS", 64)  # several batches and slices
    monkeypatch.setattr(ranking, "_SCORES", 5 * ITEMS)
    torch.manual_seed(2)
    network = Network(NetworkConfig(items=ITEMS, cell=cell, hidden=9, embedding=6))
    torch.nn.init.normal_(network.item_bias)
    source = random_histories([1, 12, 0, 30, 2, 7])
    wanted = np.random.default_rng(1).random(len(source)) < 0.5
    network.eval()
    expected = one_by_one(network, source, wanted)
    network.train()
    assert sorted(ranks(network, source, wanted)) == sorted(expected)
    assert network.training


def test_equal_scores_share_the_middle_rank() -> None:
    network = Network(NetworkConfig(items=ITEMS, hidden=4, embedding=3))
    for parameter in network.parameters():
        torch.nn.init.zeros_(parameter)
    source = random_histories([5])
    source.items[:] = 3
    assert ranks(network, source, np.ones(5, np.bool_)).tolist() == [1 + (ITEMS - 2) / 2] * 4


def test_a_diverged_network_ranks_last() -> None:
    network, source = Network(NetworkConfig(items=ITEMS, hidden=4, embedding=3)), random_histories([9])
    torch.nn.init.constant_(network.gap_weight, torch.nan)
    found = ranks(network, source, np.ones(9, np.bool_))
    assert (found >= ITEMS).all()
    assert quality(found)["hr@10"] == 0


def test_popularity_ranks_count_ties_half_and_judge_the_same_events() -> None:
    source = random_histories([1, 12, 0, 30])
    wanted = np.ones(len(source), np.bool_)
    counts = np.random.default_rng(3).integers(0, 5, ITEMS)
    expected = []
    for start, end in zip(source.starts[:-1], source.starts[1:], strict=True):
        for item in source.items[start + 1 : end]:
            if item:
                others = np.delete(counts, [0, item])
                expected.append(1 + (others > counts[item]).sum() + (others == counts[item]).sum() / 2)
    assert popularity_ranks(counts, source, wanted).tolist() == expected


def test_nothing_to_judge_is_no_rank_and_no_quality() -> None:
    network, source = Network(NetworkConfig(items=ITEMS, hidden=4, embedding=3)), random_histories([1, 1, 4])
    first_only = np.array([True, True, True, False, False, False])
    assert len(ranks(network, source, first_only)) == 0
    assert quality(ranks(network, source, first_only)) == {"hr@10": 0.0, "ndcg@10": 0.0, "mrr@10": 0.0}


def test_long_histories_are_judged_on_their_recent_part(monkeypatch: pytest.MonkeyPatch) -> None:
    network, source = Network(NetworkConfig(items=ITEMS, hidden=4, embedding=3)), random_histories([300])
    wanted = np.zeros(300, np.bool_)
    wanted[[-5, -1]] = True
    monkeypatch.setattr(ranking, "CONTEXT", 50)
    recent = Histories(*(column[245:] for column in (source.items, source.kinds, source.gaps_seconds, source.times_ms)),
                       np.array([0, 55]))  # fmt: skip
    assert ranks(network, source, wanted).tolist() == ranks(network, recent, wanted[245:]).tolist()
