"""Our training on the leave-one-out protocol: all but each user's last two events train, those two are ranked.

Full ranking, seen items not masked. The last but one event of each user chooses the epoch, the last one is the test and
is ranked given everything before it, the validation event included. Users of fewer than three events only train.
"""

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from models.fit import popularity_bias
from models.network import Network, NetworkConfig
from models.ranking import quality, ranks
from models.sequences import Histories, histories, vocabulary_of
from models.tables import Events
from models.training import Trainer
from models.training_settings import TrainingSettings

JUDGED = "ndcg@10"


@dataclass(frozen=True, slots=True)
class Split:
    """Histories cut by leave-one-out.

    Attributes:
        train: Histories without the last two events of users that have three or more.
        whole: All events.
        valid: Which of them choose the epoch (N,).
        test: Which of them are the test (N,).
        vocabulary: Item id of every row.
    """

    train: Histories
    whole: Histories
    valid: NDArray[np.bool_]
    test: NDArray[np.bool_]
    vocabulary: list[str]

    @property
    def samples(self) -> int:
        """Events that an epoch learns: all of the training part but each user's first."""
        return int(np.maximum(np.diff(self.train.starts) - 1, 0).sum())


def split(events: Events) -> Split:
    """Cut the histories of time-ordered events."""
    vocabulary = vocabulary_of(events)
    whole = histories(events, vocabulary)
    ends = whole.starts[1:][np.diff(whole.starts) >= 3]
    valid, test = np.zeros(len(whole), np.bool_), np.zeros(len(whole), np.bool_)
    valid[ends - 2], test[ends - 1] = True, True
    keep = ~(valid | test)
    kept = np.concatenate(([0], np.cumsum(keep)))
    train = Histories(
        whole.items[keep], whole.kinds[keep], whole.gaps_seconds[keep], whole.times_ms[keep], kept[whole.starts]
    )
    return Split(train, whole, valid, test, vocabulary)


def train_ours(
    data: Split,
    *,
    epochs: int,
    patience: int,
    hidden: int,
    embedding: int,
    seed: int,
    settings: TrainingSettings,
    device: str = "cpu",
    dropout: float = 0.35,
    on_epoch: Callable[[int, float, float], None] = lambda epoch, seconds, ndcg: None,
) -> dict[str, Any]:
    """Train the network of `recstream fit` and rank the test events with its best epoch.

    An epoch's time is that of `models.training.Trainer.epoch`: layout, initial states, every update; not the ranking.

    Returns:
        ``epoch_seconds`` and ``valid_ndcg_at_10`` of each epoch, ``hr_at_10`` and ``ndcg_at_10`` of the test,
        ``samples``, ``parameters``.
    """
    torch.set_num_threads(1)
    counts = data.train.counts(len(data.vocabulary))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = NetworkConfig(len(data.vocabulary), "gru", hidden, embedding, dropout)
        network = Network(config).to(device)
    with torch.no_grad():
        network.item_bias.copy_(popularity_bias(counts))
    trainer = Trainer(network, counts, epochs, seed, settings)
    seconds, found, best, weights = list[float](), list[float](), 0, network.state_dict()
    for epoch in range(epochs):
        started = time.perf_counter()
        trainer.epoch(data.train, lambda share, loss: False)
        seconds.append(time.perf_counter() - started)
        found.append(quality(ranks(network, data.whole, data.valid))[JUDGED])
        on_epoch(epoch + 1, seconds[-1], found[-1])
        if found[-1] >= found[best]:
            best, weights = epoch, copy.deepcopy(network.state_dict())
        if epoch - best >= patience:
            break
    network.load_state_dict(weights)
    figures = quality(ranks(network, data.whole, data.test))
    return {
        "samples": data.samples,
        "epoch_seconds": seconds,
        "valid_ndcg_at_10": found,
        "best_epoch": best + 1,
        "hr_at_10": figures["hr@10"],
        "ndcg_at_10": figures[JUDGED],
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "torch": str(torch.__version__),
    }
