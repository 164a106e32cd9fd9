"""The first model of a stream: a network fitted to a table of past events, judged on its newest slice.

The newest tenth by time is held out. Training stops when the ranking of that slice no longer improves, the best network
so far learns the held-out slice as well (its items are the ones the stream will ask about first), and the
figures reported are those of the held-out slice before it was learnt.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from models.network import UNKNOWN_ROW, Cell, Network, NetworkConfig
from models.ranking import popularity_ranks, quality, ranks
from models.sequences import Histories, histories, vocabulary_of
from models.tables import Events
from models.training import Trainer
from models.training_settings import SMALL_BATCHES, TrainingSettings
from state.errors import RecstreamError

HELD_OUT: Final = 0.1  # newest share of the events
FINISH: Final = 2  # epochs over everything once the best epoch is known
FINISH_RATE: Final = 0.5  # of the learning rate, for those
PATIENCE: Final = 3  # epochs without a better held-out NDCG@10
FEWEST_JUDGED: Final = 20  # held-out events; on fewer the best epoch would be chosen by chance
JUDGED: Final = "ndcg@10"


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a fit stands.

    Attributes:
        done: Share of the work done, 0 to 1; jumps when training stops early.
        epoch: Current epoch, from 1.
        epochs: Most epochs there will be.
        loss: Mean loss of the current epoch so far.
        quality: Held-out figures of the best epoch so far, empty before the first.
    """

    done: float
    epoch: int
    epochs: int
    loss: float
    quality: dict[str, float]


Report = Callable[[Progress], bool | None]


def fit_first_model(
    events: Events,
    cell: Cell = "gru",
    hidden: int = 128,
    embedding: int = 64,
    seed: int = 0,
    epochs: int = 12,
    progress: Report | None = None,
    *,
    dropout: float = 0.35,
    settings: TrainingSettings | None = None,
    device: str = "cpu",
) -> tuple[Network, list[str], dict[str, Any], dict[str, Any]]:
    """Fit a network to past events.

    Args:
        events: The events, in any order of time; ties in time keep the order given.
        cell: ``gru`` or ``lstm``.
        hidden: H.
        embedding: D.
        seed: Randomness of the start and of training; the same seed gives the same network on one machine.
        epochs: Most passes over the events; the learning rate falls to 0 over this many.
        progress: Called after every batch; a True answer stops and returns the best network so far.
        dropout: See `NetworkConfig`.
        settings: How to train.
        device: Where to train; the network returned is on the CPU.

    Returns:
        The network in evaluation mode, its vocabulary, its held-out figures and its lineage, ready for
        `models.registry.Registry.publish`.

    Raises:
        RecstreamError: There are no events, or a size is out of range.
    """
    if len(events) == 0 or epochs < 1:
        what, why = "There is nothing to fit", "the table has no events" if len(events) == 0 else f"{epochs} epochs"
        raise RecstreamError(what, why, "Give a table with events and at least one epoch")
    settings = settings or SMALL_BATCHES
    vocabulary = vocabulary_of(events)
    source = histories(events, vocabulary)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = Network(NetworkConfig(len(vocabulary), cell, hidden, embedding, dropout)).to(device)
    from_ms, wanted = _held_out(source)
    course = _Course(network, epochs, seed, settings, progress)
    past = source if from_ms is None else source.before(from_ms)
    metrics = course.search(past, source, wanted)
    if from_ms is not None:
        course.finish(past, source)
    lineage = {
        "origin": "fit",
        "events": len(source),
        "users": source.users,
        "items": len(vocabulary) - 1,
        "oldest_ms": int(source.times_ms.min()),
        "newest_ms": int(source.times_ms.max()),
        "held_out_from_ms": from_ms,
        "seed": seed,
        "training": asdict(settings),
        "torch": str(torch.__version__),
    }
    return network.cpu().eval(), vocabulary, metrics, lineage


def popularity_bias(counts: NDArray[np.int64]) -> torch.Tensor:
    """Item biases (V,) float32 with which an untrained network ranks by popularity: log frequency, mean 0."""
    logs = np.log(counts + 1.0)
    logs -= logs[UNKNOWN_ROW + 1 :].mean()
    logs[UNKNOWN_ROW] = 0.0
    return torch.from_numpy(logs.astype(np.float32))


def _held_out(source: Histories) -> tuple[int | None, NDArray[np.bool_]]:
    """The time from which events are held out, and which those are; None where the slice would judge nothing."""
    from_ms = int(np.quantile(source.times_ms, 1 - HELD_OUT, method="higher"))
    wanted = source.times_ms >= from_ms
    followers = wanted.copy()
    followers[source.starts[:-1]] = False  # a user's first event cannot be foretold from a state
    if followers.sum() < FEWEST_JUDGED or wanted.sum() > len(source) / 2:
        return None, np.zeros_like(wanted)
    return from_ms, wanted


class _Course:
    """The epochs of one fit: a search for the best one, then the held-out slice."""

    def __init__(
        self, network: Network, epochs: int, seed: int, settings: TrainingSettings, progress: Report | None
    ) -> None:
        self._network, self._epochs, self._seed, self._settings = network, epochs, seed, settings
        self._progress = progress
        self._best: dict[str, float] = {}
        self._stopped = False

    def search(self, past: Histories, source: Histories, wanted: NDArray[np.bool_]) -> dict[str, Any]:
        """Train on ``past`` until ``wanted`` events are ranked no better; the network ends as its best epoch."""
        counts = past.counts(self._network.config.items)
        with torch.no_grad():
            self._network.item_bias.copy_(self._popularity(counts))
        trainer = Trainer(self._network, counts, self._epochs, self._seed, self._settings)
        weights, best_epoch, loss = copy.deepcopy(self._network.state_dict()), 0, float("nan")
        for epoch in range(1, self._epochs + 1):
            mean = trainer.epoch(past, self._reporter(epoch))
            found = dict(quality(ranks(self._network, source, wanted)))
            if not wanted.any() or not self._best or found[JUDGED] > self._best[JUDGED]:
                weights, best_epoch, loss = copy.deepcopy(self._network.state_dict()), epoch, mean
                self._best = found
            if self._stopped or epoch - best_epoch >= PATIENCE:
                break
        self._network.load_state_dict(weights)
        rivals = quality(popularity_ranks(counts, source, wanted))
        return {
            **self._best,
            **{f"popularity_{name}": value for name, value in rivals.items()},
            "held_out_events": int(wanted.sum()),
            "epochs": best_epoch,
            "loss": None if math.isnan(loss) else round(loss, 6),
        }

    def finish(self, past: Histories, source: Histories) -> None:
        """Learn everything, the slice held out after ``past`` included, at a part of the rate."""
        if self._stopped:
            return
        counts = source.counts(self._network.config.items)
        with torch.no_grad():  # an item first seen in the slice starts at its popularity, not at that of a stranger
            self._network.item_bias.add_(self._popularity(counts) - self._popularity(past.counts(len(counts))))
        settings = replace(self._settings, learning_rate=self._settings.learning_rate * FINISH_RATE, warmup=0.0)
        trainer = Trainer(self._network, counts, FINISH, self._seed + 1, settings)
        for epoch in range(1, FINISH + 1):
            trainer.epoch(source, self._reporter(self._epochs + epoch))

    def _popularity(self, counts: NDArray[np.int64]) -> torch.Tensor:
        return popularity_bias(counts).to(self._network.item_bias.device)

    def _reporter(self, epoch: int) -> Callable[[float, float], bool]:
        total = self._epochs + FINISH

        def report(share: float, loss: float) -> bool:
            if self._progress is not None:
                progress = Progress((epoch - 1 + share) / total, epoch, total, loss, self._best)
                self._stopped = bool(self._progress(progress)) or self._stopped
            return self._stopped

        return report
