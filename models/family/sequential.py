"""The base of the attention and content models: item vectors and context in, an encoder, a query out.

Letters: B users or windows, T steps, D width, S state width, V item rows, N targets.
"""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.family.course import BatchReport, Plan, Quality, epochs_for, run_course
from models.family.inputs import Context
from models.family.interface import EventBatch, Lesson, SequenceModel, gather
from models.family.losses import cross_entropy, generalised_bce
from models.fit import popularity_bias
from models.network import UNKNOWN_ROW
from models.passes import lay_out
from models.softmax import Sampler

RATE: Final = 0.004
SAMPLED_ABOVE: Final = 6000  # item rows; a full softmax over more would take most of the training time
NEGATIVES: Final = 2048
_GBCE_NEGATIVES: Final = 256
_CLIP: Final = 1.0
_WARMUP: Final = 0.05  # share of all updates
_FEWEST_BATCHES: Final = 100  # of an epoch: small data gets smaller batches rather than few updates
_BATCH_STEPS: Final = 2000
_FEWEST_UPDATES: Final = 1000  # of a fit: a small data set is gone through more often
_MOST_EPOCHS: Final = 100
_DECAY: Final = 0.01
_KEPT: Final = 0.98  # of the average of weights, per update


class Module(nn.Module):
    """Item vectors, context, encoder and item biases, under one name each.

    Args:
        vectors: Item vectors by row: a module from rows (...) to (..., D).
        context: Context vectors of events.
        encoder: From inputs to outputs (B, T, D), with its own states.
        items: V.
        dropout: Of inputs, in training.
    """

    def __init__(self, vectors: nn.Module, context: Context, encoder: nn.Module, items: int, dropout: float) -> None:
        super().__init__()
        self.vectors, self.context, self.encoder = vectors, context, encoder
        self.item_bias = nn.Parameter(torch.zeros(items))
        self.dropout = nn.Dropout(dropout)

        self._kept: Tensor | None = None

    def train(self, mode: bool = True) -> "Module":
        """Switch between training and evaluation; item vectors kept for evaluation are made anew."""
        self._kept = None
        return super().train(mode)

    def table(self) -> Tensor:
        """All item vectors (V, D), computed once while the module is evaluated."""
        if self.training:
            return self.vectors(None)
        if self._kept is None:
            self._kept = self.vectors(None).detach()
        return self._kept

    def inputs(self, events: EventBatch) -> Tensor:
        """Input vectors (..., D) of events (...)."""
        x: Tensor = self.dropout(self.vectors(events.items) + self.context(events))
        return x


class Sequential(SequenceModel):
    """A model around a `Module`; says how it is trained.

    Attributes:
        module: What is trained.
        window: Most steps of a training window.
        rate: Peak of AdamW's learning rate.
        epochs: Most epochs.
        loss: ``ce`` or ``gbce``.
        item_dropout: Share of input items replaced by the unknown item.
        weight_decay: AdamW's decay of matrices.
        smallest_batch: Fewest steps of a batch.
        patience: Share of the epochs that may pass without a better one.
        quality: What the best epoch is chosen by, `models.family.course.held_out_ndcg` when None.
    """

    module: Module
    window: int = 50
    rate: float = RATE
    epochs: int = 16
    loss: str = "ce"
    item_dropout: float = 0.05
    smallest_batch: int = 128
    weight_decay: float = _DECAY
    patience: float = 0.25
    quality: Quality | None = None

    def build(self, lesson: Lesson | None) -> None:
        """Make ``module`` anew, with knowledge of the items where there is a lesson."""
        raise NotImplementedError

    def encoder_weights(self) -> float:
        """Multiplications of the encoder per event, for the budget."""
        return float(sum(parameter.numel() for parameter in self.module.encoder.parameters()))

    def outputs(self, events: EventBatch, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Queries (N, D) of windows (B, T) and the item rows (N,) they should find; ``targets`` (B, T), 0 none."""
        known = targets != UNKNOWN_ROW
        return self.module.encoder.sequence(self.module.inputs(events))[known], targets[known]  # type: ignore[operator]

    def fit(self, lesson: Lesson) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(lesson.seed)
            self.build(lesson)
            counts = lesson.past.counts(self.items)
            counts[UNKNOWN_ROW] = 0
            with torch.no_grad():
                self.module.item_bias.copy_(popularity_bias(counts))
            sampler = Sampler.of(torch.from_numpy(counts), NEGATIVES) if self.items > SAMPLED_ABOVE else None
            scored = (NEGATIVES if sampler else self.items) * self._width()
            batches = transitions(lesson) // batch_steps(self, lesson) + 1
            most = max(self.epochs, min(_FEWEST_UPDATES // batches, _MOST_EPOCHS))
            epochs = epochs_for(lesson, self.encoder_weights() + scored, most)
            plan = Plan(epochs, patience=max(5, int(epochs * self.patience)))
            trained = _Epochs(self, lesson, plan, sampler)
            run_course(self, self.module, lesson, plan, trained.one, self.quality)

    def _width(self) -> int:
        with torch.no_grad():
            return int(self.module.vectors(torch.zeros(1, dtype=torch.int64)).shape[-1])

    @property
    def state_size(self) -> int:
        return int(self.module.encoder.state_size)  # type: ignore[arg-type]

    @torch.no_grad()
    def step(self, state: Tensor, events: EventBatch) -> Tensor:
        after: Tensor = self.module.encoder.step(state, self.module.inputs(events))  # type: ignore[operator]
        return after

    @torch.no_grad()
    def query(self, state: Tensor) -> Tensor:
        asked: Tensor = self.module.encoder.query(state)  # type: ignore[operator]
        return asked

    @torch.no_grad()
    def sequence(self, events: EventBatch) -> Tensor:
        out: Tensor = self.module.encoder.sequence(self.module.inputs(events))  # type: ignore[operator]
        return out

    @torch.no_grad()
    def item_scores(self, queries: Tensor) -> Tensor:
        scores = torch.addmm(self.module.item_bias, queries, self.module.table().T)
        scores[:, UNKNOWN_ROW] = -torch.inf
        return scores

    def tensors(self) -> dict[str, Tensor]:
        return {name: tensor.detach() for name, tensor in self.module.state_dict().items()}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        self.module.load_state_dict(dict(tensors))
        self.module.eval()


class _Epochs:
    """Epochs of windows with AdamW, a linear warm-up and a cosine down to 0; between epochs the weights are averages.

    The exponential average over about the last 50 updates ranks better than the weights themselves, which jump about
    while the rate is high, and early stopping chooses among averages by quality rather than by luck.

    References:
        Polyak and Juditsky, "Acceleration of stochastic approximation by averaging", SIAM J. Control Optim. 1992.
    """

    def __init__(self, model: Sequential, lesson: Lesson, plan: Plan, sampler: Sampler | None) -> None:
        self._model, self._lesson, self._plan, self._sampler = model, lesson, plan, sampler
        self._order = np.random.default_rng(lesson.seed)
        parameters = list(model.module.parameters())
        matrices = [parameter for parameter in parameters if parameter.ndim > 1]
        vectors = [parameter for parameter in parameters if parameter.ndim <= 1]
        groups = [{"params": matrices, "weight_decay": model.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
        self._optimizer = torch.optim.AdamW(groups, lr=model.rate)
        self._parameters: list[Tensor] = [*parameters]
        self._average = [parameter.detach().clone() for parameter in parameters]
        self._weights: list[Tensor] = []  # those in training, while the averages stand in their place
        self._finished, self._updates = 0, 0

    def one(self, report: BatchReport) -> float:
        """Train one epoch; returns its mean loss, NaN when there was nothing to learn."""
        past, model = self._lesson.past, self._model
        plan = lay_out(past, model.window, batch_steps(model, self._lesson), self._order)
        total, seen = 0.0, 0
        self._put(self._weights)
        model.module.train()
        for number, chosen in enumerate(plan.batches):
            self._schedule((self._finished + number / len(plan.batches)) / self._plan.epochs)
            loss, targets = self._update(plan.windows[chosen])
            total, seen = total + loss * targets, seen + targets
            if report((number + 1) / len(plan.batches), total / max(seen, 1)):
                break
        self._weights = [parameter.detach().clone() for parameter in self._parameters]
        self._put(self._average)
        model.module.eval()
        self._finished += 1
        return total / seen if seen else float("nan")

    @torch.no_grad()
    def _put(self, values: list[Tensor]) -> None:
        """Give the module these parameters; none leaves those it has."""
        for parameter, value in zip(self._parameters, values, strict=False):
            parameter.copy_(value)

    @torch.no_grad()
    def _averaged(self) -> None:
        self._updates += 1
        kept = min(_KEPT, (1 + self._updates) / (10 + self._updates))  # a short memory at first
        torch._foreach_lerp_(self._average, self._parameters, 1 - kept)

    def _schedule(self, progress: float) -> None:
        warm = min(1.0, (progress + 1e-3) / _WARMUP)
        rate = self._model.rate * warm * (0.5 + 0.5 * float(np.cos(np.pi * min(progress, 1.0))))
        for group in self._optimizer.param_groups:
            group["lr"] = rate

    def _update(self, windows: NDArray[np.int64]) -> tuple[float, int]:
        model, past = self._model, self._lesson.past
        events = gather(past, windows)
        real = np.arange(events.items.shape[1])[None] < windows[:, 1:]
        where = np.minimum(windows[:, :1] + 1 + np.arange(events.items.shape[1]), len(past) - 1)
        targets = torch.from_numpy(past.items[where].astype(np.int64) * real)  # (B, T)
        forgotten = torch.rand(events.items.shape) < model.item_dropout
        events = EventBatch(
            events.items.masked_fill(forgotten, UNKNOWN_ROW), events.kinds, events.gaps_seconds, events.clock
        )
        query, wanted = model.outputs(events, targets)
        if not len(wanted):
            return 0.0, 0
        bias = model.module.item_bias
        if model.loss == "gbce":
            loss = generalised_bce(query, model.module.vectors, bias, wanted, min(_GBCE_NEGATIVES, model.items - 1))
        else:
            loss = cross_entropy(query, model.module.vectors, bias, wanted, self._sampler)
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.module.parameters(), _CLIP)
        self._optimizer.step()
        self._averaged()
        return loss.item(), len(wanted)


def transitions(lesson: Lesson) -> int:
    """Events that can be learnt: all but each user's first."""
    return int(np.maximum(np.diff(lesson.past.starts) - 1, 0).sum())


def batch_steps(model: Sequential, lesson: Lesson) -> int:
    """Most steps of a batch, padding included."""
    return int(np.clip(transitions(lesson) // _FEWEST_BATCHES, max(model.window, model.smallest_batch), _BATCH_STEPS))


def plain(model: Any, names: tuple[str, ...]) -> dict[str, Any]:
    """Attributes of a model as keyword arguments, for its settings."""
    return {name: getattr(model, name) for name in names}
