"""One pass after another over users' windows: loss, optimiser, schedule. First fits and fine-tuning share it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.network import UNKNOWN_ROW, Network
from models.sequences import Histories, batch, epoch
from models.softmax import Sampler, full_softmax, sampled_softmax


@dataclass(frozen=True, slots=True)
class TrainingSettings:
    """How a network is trained.

    Attributes:
        learning_rate: Peak of AdamW's rate, after a linear warm-up and before a cosine down to 0.
        warmup: Share of all updates that warm up.
        weight_decay: AdamW's decay of matrices; vectors (biases) have none.
        window: T, most steps of a window.
        batch_steps: Most steps of a batch, padding included.
        batches: Fewest batches of an epoch: a small data set gets smaller batches rather than few updates.
        item_dropout: Share of input items replaced by the unknown item, so that its embedding is worth something.
        clip: Largest norm of the gradient.
        sampled_above: Item rows above which the softmax is sampled.
        negatives: Negatives of a sampled softmax.
    """

    learning_rate: float = 0.01
    warmup: float = 0.04
    weight_decay: float = 0.01
    window: int = 100
    batch_steps: int = 1600
    batches: int = 30
    item_dropout: float = 0.05
    clip: float = 1.0
    sampled_above: int = 20_000
    negatives: int = 4096


class Trainer:
    """Trains a network in place, one epoch at a time.

    Args:
        network: The network, on the device to train on.
        counts: How often each item row occurs (V,): what negatives are drawn by.
        epochs: Number of epochs the schedule is laid out for.
        seed: Randomness of windows, order, dropout and negatives; the same seed gives the same network on one machine.
        settings: How to train.
    """

    def __init__(
        self, network: Network, counts: NDArray[np.int64], epochs: int, seed: int, settings: TrainingSettings
    ) -> None:
        self.network, self.settings, self.epochs = network, settings, epochs
        self._device = network.item_bias.device
        self._order = np.random.default_rng(seed)
        self._torch_state = torch.Generator().manual_seed(seed).get_state()
        matrices = [parameter for parameter in network.parameters() if parameter.ndim > 1]
        vectors = [parameter for parameter in network.parameters() if parameter.ndim == 1]
        self._optimizer = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
            lr=settings.learning_rate,
        )
        self._sampler: Sampler | None = None
        if network.config.items > settings.sampled_above:
            self._sampler = Sampler.of(torch.from_numpy(counts).to(self._device), settings.negatives)
        self._done = 0.0  # epochs, in parts

    def epoch(self, source: Histories, report: Callable[[float, float], bool]) -> float:
        """Train on every transition once.

        Args:
            source: The histories.
            report: Called after each batch with the share of the epoch done and its mean loss; True ends the epoch.

        Returns:
            Mean loss of the epoch's targets, NaN when there were none.
        """
        settings = self.settings
        transitions = int(np.maximum(np.diff(source.starts) - 1, 0).sum())
        steps = int(np.clip(transitions // settings.batches, settings.window, settings.batch_steps))
        groups = epoch(source, settings.window, steps, self._order)
        start, loss, count = self._done, 0.0, 0
        self.network.train()
        with self._randomness():
            for number, windows in enumerate(groups, 1):
                self._schedule(self._done / self.epochs)
                part, targets = self._update(source, windows)
                loss, count = loss + part * targets, count + targets
                self._done = start + number / len(groups)
                if report(number / len(groups), loss / max(count, 1)):
                    break
        self.network.eval()
        return loss / count if count else float("nan")

    def _schedule(self, progress: float) -> None:
        warm = min(1.0, (progress + 1e-3) / self.settings.warmup) if self.settings.warmup else 1.0
        rate = self.settings.learning_rate * warm * (0.5 + 0.5 * float(np.cos(np.pi * min(progress, 1.0))))
        for group in self._optimizer.param_groups:
            group["lr"] = rate

    def _update(self, source: Histories, windows: NDArray[np.int64]) -> tuple[float, int]:
        network, data = self.network, batch(source, windows)
        items, kinds, gaps, targets = (
            torch.from_numpy(part).to(self._device)
            for part in (data.items, data.kinds, data.gaps_seconds, data.targets)
        )
        known = targets != UNKNOWN_ROW
        wanted = targets[known]  # (N,)
        if not len(wanted):
            return 0.0, 0
        forgotten = torch.rand(items.shape, device=self._device) < self.settings.item_dropout
        outputs, _ = network.sequence(items.masked_fill(forgotten, UNKNOWN_ROW), kinds, gaps)
        query = network.query(outputs[known])  # (N, D)
        loss = self._loss(query, wanted)
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(network.parameters(), self.settings.clip)
        self._optimizer.step()
        return loss.item(), len(wanted)

    def _loss(self, query: Tensor, wanted: Tensor) -> Tensor:
        table, bias = self.network.item_embedding.weight, self.network.item_bias
        if self._sampler is None:
            return full_softmax(query, table, bias, wanted)
        return sampled_softmax(query, table, bias, wanted, self._sampler)

    @contextmanager
    def _randomness(self) -> Iterator[None]:
        """Torch's global generator, which dropout uses, follows this trainer's seed and is given back as it was."""
        with torch.random.fork_rng():
            torch.set_rng_state(self._torch_state)
            yield
            self._torch_state = torch.get_rng_state()
