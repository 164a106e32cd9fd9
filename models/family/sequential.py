"""The base of the attention and content models: item vectors and context in, an encoder, a query out.

Letters: B users or windows, T steps, D width, S state width, V item rows, N targets.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import ceil
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.family.augmentation import Variety
from models.family.coding import Coding
from models.family.course import BatchReport, Plan, epochs_for, held_out_ndcg_of_both, placed, run_course
from models.family.heads import Answers, TaskHeads, heads_of, plain_tasks
from models.family.interface import EventBatch, Lesson, gather
from models.family.losses import cross_entropy, generalised_bce
from models.family.module import Module
from models.family.repeats import RepeatAware
from models.fit import popularity_bias
from models.network import RECENT, UNKNOWN_ROW
from models.passes import lay_out
from models.sequences import Histories, recent_items
from models.softmax import Repeats, Sampler

RATE: Final = 0.004
SAMPLED_ABOVE: Final = 6000  # item rows; a full softmax over more would take most of the training time
_GBCE_NEGATIVES: Final = 2048  # shared by a batch; its authors draw 256 for each history
_CLIP: Final = 1.0
_WARMUP: Final = 0.05  # share of all updates
_FEWEST_BATCHES: Final = 100  # of an epoch: small data gets smaller batches rather than few updates
_BATCH_STEPS: Final = 2000
_FEWEST_UPDATES: Final = 1000  # of a fit: a small data set is gone through more often
_MOST_EPOCHS: Final = 100
_DECAY: Final = 0.01
_KEPT: Final = 0.98  # of the average of weights, per update


@dataclass(frozen=True, slots=True)
class Asked:
    """Queries of a training batch and what they should find.

    Attributes:
        queries: (N, D).
        targets: (N,) item rows.
        windows: (N,) which window each query belongs to.
        events: (N,) which event of that window it asks for; the first is 0.
        ahead: (N,) queries that have seen nothing but what came before that event.
    """

    queries: Tensor
    targets: Tensor
    windows: Tensor
    events: Tensor
    ahead: Tensor


class Sequential(RepeatAware):
    """A model around a `Module`; says how it is trained.

    Attributes:
        module: What is trained.
        coding: What is told of an event's type and time.
        window: Most steps of a training window.
        rate: Peak of AdamW's learning rate.
        epochs: Most epochs.
        loss: ``ce`` or ``gbce``.
        item_dropout: Share of input items replaced by the unknown item.
        weight_decay: AdamW's decay of matrices.
        smallest_batch: Fewest steps of a batch.
        negatives: Of a sampled softmax.
    """

    module: Module
    coding: Coding
    window: int = 50
    rate: float = RATE
    epochs: int = 16
    loss: str = "ce"
    item_dropout: float = 0.05
    smallest_batch: int = 128
    negatives: int = 4096  # with 2048 a Transformer on Amazon Beauty ranks 1% worse, at the same cost of a fit
    weight_decay: float = _DECAY

    def build(self, lesson: Lesson | None) -> None:
        """Make ``module`` anew, with knowledge of the items where there is a lesson."""
        raise NotImplementedError

    def encoder_weights(self) -> float:
        """Multiplications of the encoder per event, for the budget."""
        return float(sum(parameter.numel() for parameter in self.module.encoder.parameters()))

    def decay(self, name: str, parameter: nn.Parameter) -> float:
        """AdamW's decay of one parameter: none of vectors (biases)."""
        del name
        return self.weight_decay if parameter.ndim > 1 else 0.0

    def outputs(self, events: EventBatch, targets: Tensor) -> Asked:
        """What windows (B, T) are asked for; ``targets`` (B, T), 0 none."""
        known = targets != UNKNOWN_ROW
        window, step = known.nonzero(as_tuple=True)
        queries = self.module.encoder.sequence(self.module.inputs(events))[known]  # type: ignore[operator]
        return Asked(queries, targets[known], window, step + 1, torch.ones_like(window, dtype=torch.bool))

    def fit(self, lesson: Lesson) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(lesson.seed)
            self.coding = Coding.of(lesson)
            self.build(lesson)
            counts = lesson.past.counts(self.items)
            counts[UNKNOWN_ROW] = 0
            with torch.no_grad():
                bias = popularity_bias(counts)
                if self.loss == "gbce":  # each score is a probability by itself, and most are far below a half
                    bias -= bias[UNKNOWN_ROW + 1 :].logsumexp(0)
                self.module.item_bias.copy_(bias)
            if lesson.tasks:
                heads = TaskHeads(self.items, self._width(), lesson.tasks)
                heads.prepare(Answers.of(lesson.past, lesson.tasks, lesson.ratings))
                self.module.add_module("task_heads", heads)
            sampled = self.items > SAMPLED_ABOVE
            scored = (self.negatives if sampled else self.items) * self._width()
            batches = transitions(lesson) // batch_steps(self, lesson) + 1
            most = max(self.epochs, min(_FEWEST_UPDATES // batches, _MOST_EPOCHS))
            epochs = epochs_for(lesson, self.encoder_weights() + scored, most)
            # Every epoch is run: the best come when the rate has fallen.
            plan = Plan(epochs, patience=ceil(epochs))
            with placed(self.module, lesson.device):
                of_items = torch.from_numpy(counts).to(lesson.device)
                trained = _Epochs(self, lesson, plan, Sampler.of(of_items, self.negatives) if sampled else None)
            run_course(self, self.module, lesson, plan, trained.one, held_out_ndcg_of_both)

    def recall(self, coding: Mapping[str, Any] | None, tasks: Mapping[str, Any] | None) -> None:
        """Make the module that a saved model's settings describe, its weights still to come."""
        self.coding = Coding.read(coding)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.build(None)
            heads = heads_of(tasks, self.items, self._width())
            if heads is not None:
                self.module.add_module("task_heads", heads.eval())

    def described(self, names: tuple[str, ...]) -> dict[str, Any]:
        """Settings: the named attributes, and what `recall` needs."""
        found = {name: getattr(self, name) for name in names}
        return {**found, "coding": self.coding.plain(), "tasks": plain_tasks(self.task_heads)}

    @property
    def task_heads(self) -> TaskHeads | None:
        heads = self.module._modules.get("task_heads")
        return heads if isinstance(heads, TaskHeads) else None

    @torch.no_grad()
    def item_vectors(self, rows: Tensor) -> Tensor:
        return self.module.table()[0][rows]

    def _width(self) -> int:
        with torch.no_grad():
            return int(self.module.vectors(torch.zeros(1, dtype=torch.int64)).shape[-1])

    @property
    def repeats(self) -> Tensor:
        return self.module.repeats

    @property
    def bare_size(self) -> int:
        return int(self.module.encoder.state_size)  # type: ignore[arg-type]

    @torch.no_grad()
    def bare_step(self, state: Tensor, events: EventBatch) -> Tensor:
        after: Tensor = self.module.encoder.step(state, self.module.inputs(events))  # type: ignore[operator]
        return after

    @torch.no_grad()
    def bare_query(self, state: Tensor) -> Tensor:
        asked: Tensor = self.module.encoder.query(state)  # type: ignore[operator]
        return asked

    @torch.no_grad()
    def bare_sequence(self, events: EventBatch) -> Tensor:
        out: Tensor = self.module.encoder.sequence(self.module.inputs(events))  # type: ignore[operator]
        return out

    @torch.no_grad()
    def bare_scores(self, queries: Tensor) -> Tensor:
        vectors, biases = self.module.table()
        return torch.addmm(biases, queries, vectors.T)

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
        groups: dict[float, list[nn.Parameter]] = {}
        for name, parameter in model.module.named_parameters():
            groups.setdefault(model.decay(name, parameter), []).append(parameter)
        self._optimizer = torch.optim.AdamW(
            [{"params": parameters, "weight_decay": decay} for decay, parameters in groups.items()], lr=model.rate
        )
        self._parameters: list[Tensor] = list(model.module.parameters())
        self._average = [parameter.detach().clone() for parameter in self._parameters]
        self._weights: list[Tensor] = []  # those in training, while the averages stand in their place
        self._finished, self._updates = 0, 0
        self._variety = Variety(lesson)

    def one(self, report: BatchReport) -> float:
        """Train one epoch; returns its mean loss, NaN when there was nothing to learn."""
        with placed(self._model.module, self._lesson.device):
            return self._one(report)

    def _one(self, report: BatchReport) -> float:
        model, heads = self._model, self._model.task_heads
        past, ratings = self._variety.histories()
        answers = None if heads is None else Answers.of(past, heads.tasks, ratings)
        plan = lay_out(past, model.window, batch_steps(model, self._lesson), self._order)
        total, seen = 0.0, 0
        self._put(self._weights)
        model.module.train()
        for number, chosen in enumerate(plan.batches):
            self._schedule((self._finished + number / len(plan.batches)) / self._plan.epochs)
            loss, targets = self._update(past, plan.windows[chosen], answers)
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

    def _update(self, past: Histories, windows: NDArray[np.int64], answers: Answers | None) -> tuple[float, int]:
        model, module, device = self._model, self._model.module, self._lesson.device
        events = gather(past, windows).to(device)
        real = np.arange(events.items.shape[1])[None] < windows[:, 1:]
        where = np.minimum(windows[:, :1] + 1 + np.arange(events.items.shape[1]), len(past) - 1)
        targets = torch.from_numpy(past.items[where].astype(np.int64) * real).to(device)  # (B, T)
        forgotten = torch.rand(events.items.shape) < model.item_dropout
        events = replace(events, items=events.items.masked_fill(forgotten, UNKNOWN_ROW))
        module.vectors.redraw()  # type: ignore[operator]
        asked = model.outputs(events, targets)
        if not len(asked.targets):
            return 0.0, 0
        places = windows[asked.windows.cpu().numpy(), 0] + asked.events.cpu().numpy()
        recent = torch.from_numpy(recent_items(past, places, RECENT)).to(device)
        loss = objective = self._loss(asked.queries, asked.targets, None, recent)
        heads = model.task_heads
        if heads is not None and answers is not None:
            ahead = asked.ahead
            queries, before = asked.queries[ahead], places[ahead.cpu().numpy()]
            objective = loss + heads.loss(queries, recent[ahead], before, answers, self._loss, module.vectors)
        self._optimizer.zero_grad()
        objective.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(module.parameters(), _CLIP)
        self._optimizer.step()
        self._averaged()
        return loss.item(), len(asked.targets)

    def _loss(self, queries: Tensor, targets: Tensor, more: Tensor | None, recent: Tensor) -> Tensor:
        """Loss of queries (N, D), targets (N,) and latest items (N, R), with something (V,) added to the biases."""
        model, module = self._model, self._model.module
        repeats = Repeats(recent, module.repeats)

        def biases(rows: Tensor | None) -> Tensor:
            own = module.biases(rows)
            return own if more is None else own + (more if rows is None else more[rows])

        if model.loss == "gbce":
            negatives = min(_GBCE_NEGATIVES, model.items - 1)
            return generalised_bce(queries, module.vectors, biases, targets, model.items, negatives, repeats)
        return cross_entropy(queries, module.vectors, biases, targets, self._sampler, repeats)


def transitions(lesson: Lesson) -> int:
    """Events that can be learnt: all but each user's first."""
    return int(np.maximum(np.diff(lesson.past.starts) - 1, 0).sum())


def batch_steps(model: Sequential, lesson: Lesson) -> int:
    """Most steps of a batch, padding included."""
    return int(np.clip(transitions(lesson) // _FEWEST_BATCHES, max(model.window, model.smallest_batch), _BATCH_STEPS))
