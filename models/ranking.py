"""Full-ranking quality of a network on held-out events: where does the item that came next stand?

Every item of the vocabulary competes, those the user already has included (unmasked), and ties count half.
"""

from collections.abc import Mapping
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from models.network import RECENT, UNKNOWN_ROW, Network
from models.sequences import Histories, batch, grouped, recent_items

CONTEXT: Final = 500  # events before the first judged one that the state is built from; a GRU forgets sooner
_STEPS: Final = 2**14  # of one forward batch, padding included: 8 MB of outputs at H = 128
_SCORES: Final = 2**22  # of one slice of targets, 16 MB


def ranks(network: Network, source: Histories, wanted: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Ranks, from 1, of wanted events' items given what their users did before.

    A user's first event has nothing before it, and an item outside the vocabulary has no rank: neither is judged.

    Args:
        network: The network; its training mode is left as it was.
        source: The histories.
        wanted: (N,) which events to judge.

    Returns:
        ``1 + better + ties / 2`` of each judged event (K,), in no particular order.
    """
    return event_ranks(network, source, wanted)[1]


@torch.inference_mode()
def event_ranks(
    network: Network, source: Histories, wanted: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """As `ranks`, with which event of the histories each rank belongs to: two arrays (K,)."""
    training = network.training
    network.eval()
    device = network.item_bias.device
    events: list[NDArray[np.int64]] = [np.zeros(0, np.int64)]
    found: list[NDArray[np.float64]] = [np.zeros(0)]
    for windows in grouped(_windows(source, wanted), _STEPS):
        inputs = batch(source, windows, wanted)
        columns = (torch.from_numpy(part).to(device) for part in (inputs.items, inputs.kinds, inputs.gaps_seconds))
        outputs, _ = network.sequence(*columns)
        targets = torch.from_numpy(inputs.targets).to(device)
        judged = targets != UNKNOWN_ROW
        places = windows[:, :1] + 1 + np.arange(inputs.targets.shape[1])  # (W, T)
        events.append(places[inputs.targets != UNKNOWN_ROW])
        recent = torch.from_numpy(recent_items(source, events[-1], RECENT)).to(device)
        rows = max(1, _SCORES // network.config.items)
        parts = (torch.split(part, rows) for part in (outputs[judged], recent, targets[judged]))
        for hidden, had, target in zip(*parts, strict=True):
            scores = network.scores(hidden, had)  # (rows, V)
            score = scores.gather(1, target[:, None])
            # Counted as "not at most", so that a network that has diverged to NaN ranks last instead of first.
            better, ties = (~(scores <= score)).sum(1), ((scores == score).sum(1) - 1).clamp(min=0)
            found.append((1 + better + ties / 2).double().cpu().numpy())
    network.train(training)
    return np.concatenate(events), np.concatenate(found)


def popularity_ranks(counts: NDArray[np.int64], source: Histories, wanted: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Ranks of the same events when every user is offered the most frequent items; ``counts`` is (V,)."""
    judged = wanted & (source.items != UNKNOWN_ROW)
    judged[source.starts[:-1][np.diff(source.starts) > 0]] = False
    offered = np.sort(counts[UNKNOWN_ROW + 1 :])
    count = counts[source.items[judged]]
    better = len(offered) - np.searchsorted(offered, count, side="right")
    ties = np.searchsorted(offered, count, side="right") - np.searchsorted(offered, count, side="left") - 1
    places: NDArray[np.float64] = 1.0 + better + ties / 2
    return places


def quality(found: NDArray[np.float64], k: int = 10) -> Mapping[str, float]:
    """HR@k, NDCG@k and MRR@k of ranks (K,), 0 when there are none.

    Example:
        >>> quality(np.array([1.0, 3.0, 11.0]))
        {'hr@10': 0.666667, 'ndcg@10': 0.5, 'mrr@10': 0.444444}
    """
    hit = found <= k
    gains = {"hr": hit * 1.0, "ndcg": hit / np.log2(found + 1), "mrr": hit / found}
    return {f"{name}@{k}": round(float(gain.mean()), 6) if len(found) else 0.0 for name, gain in gains.items()}


def _windows(source: Histories, wanted: NDArray[np.bool_]) -> NDArray[np.int64]:
    """One window (W, 2) for each user with something to judge, like lengths together."""
    where = np.flatnonzero(wanted)
    users = np.searchsorted(source.starts, where, side="right") - 1
    first, last = np.full(source.users, -1), np.full(source.users, -1)
    first[users[::-1]], last[users] = where[::-1], where
    judged = np.flatnonzero(last > source.starts[:-1])
    begin = np.maximum(source.starts[:-1][judged], first[judged] - CONTEXT)
    windows = np.stack((begin, last[judged] - begin), axis=1)
    return windows[np.argsort(windows[:, 1], kind="stable")]
