"""Recurrent models: Elman's RNN, LSTM, GRU and the time-aware LSTM, all on `models.network.Network`.

A GRU or LSTM fitted here is the network the workers serve: the same parameters under the same names.

Letters: B users, T steps, D embedding width, H hidden width, S state width, V item rows.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.family.augmentation import Variety
from models.family.coding import Coding
from models.family.course import BatchReport, Plan, epochs_for, placed, run_course
from models.family.dynamic import Int8Cell
from models.family.heads import Answers, TaskHeads, heads_of, plain_tasks
from models.family.interface import EventBatch, Lesson
from models.family.repeats import RepeatAware
from models.fit import popularity_bias
from models.network import Cell, Network, NetworkConfig
from models.training import Trainer
from models.training_settings import TrainingSettings

_SECONDS_PER_UNIT: Final = 3600.0  # of the time-aware decay: an hour away fades short-term memory by a quarter
_RATE: Final = 0.01
# NDCG@10 of three seeds: on ML-100K .095; .085 at .01, where a seed may fail (.069); .089 at .003. On Beauty .037; .040
# at .01.
_ELMAN_RATE: Final = 0.005
_EPOCHS: Final = 16
_MOST_EPOCHS: Final = 60  # on small data, which is gone through until it was learnt from often enough
_FEWEST_UPDATES: Final = 500
_SAMPLED_ABOVE: Final = 6000  # item rows; a full softmax over more would take most of the training time
_NEGATIVES: Final = 2048


class RnnNetwork(Network):
    """`Network` with Elman's recurrent layer: h' = tanh(W x + U h + b).

    References:
        Elman, "Finding structure in time", Cognitive Science 1990.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__(config)
        self.cell = nn.RNN(config.embedding, config.hidden, batch_first=True)  # type: ignore[assignment]


class TimeLstmNetwork(Network):
    """`Network` with a time-aware LSTM: the short-term part of its memory fades with the time since the last event.

        short = tanh(W_d c + b_d);   c* = c - short + short / ln(e + gap);   an LSTM step from c*

    The gap is in hours, so events of one sitting keep their memory whole.

    References:
        Baytas et al., "Patient subtyping via time-aware LSTM networks", KDD 2017.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__(config)
        self.decay = nn.Linear(config.hidden, config.hidden)
        nn.init.zeros_(self.decay.weight)  # starts as a plain LSTM
        nn.init.zeros_(self.decay.bias)

    def sequence(
        self, items: Tensor, kinds: Tensor, gaps_seconds: Tensor, state: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """As `Network.sequence`; the states are ``[h, c]``."""
        inputs = self.dropout(self.inputs(items, kinds, gaps_seconds))  # (B, T, D)
        hidden, memory = (self.initial_state(len(items)) if state is None else state).chunk(2, dim=1)  # (B, H) each
        onward: Callable[[Tensor], Tensor]
        if isinstance(self.cell, Int8Cell):
            gates, onward = self.cell.inputs(inputs), self.cell.recurrent
        else:
            # In torch's order: input weight (4H, D), recurrent weight (4H, H), input bias, recurrent bias.
            weight, recurrent, bias, recurrent_bias = self.cell.parameters()
            gates = nn.functional.linear(inputs, weight, bias + recurrent_bias)  # (B, T, 4H)
            onward = partial(nn.functional.linear, weight=recurrent)
        hours = gaps_seconds.clamp(min=0).to(inputs.dtype) / _SECONDS_PER_UNIT
        fading = 1 - 1 / torch.log(torch.e + hours)  # (B, T) share of the short-term memory that is lost
        outputs = []
        for step in range(items.shape[1]):
            memory = memory - torch.tanh(self.decay(memory)) * fading[:, step, None]
            i, f, g, o = (gates[:, step] + onward(hidden)).chunk(4, dim=1)  # torch's order of gates
            memory = torch.sigmoid(f) * memory + torch.sigmoid(i) * torch.tanh(g)
            hidden = torch.sigmoid(o) * torch.tanh(memory)
            outputs.append(hidden)
        return self.dropout(torch.stack(outputs, dim=1)), torch.cat((hidden, memory), dim=1)


class Recurrent(RepeatAware):
    """What the recurrent models share.

    Args:
        items: V.
        hidden: H.
        embedding: D.
        dropout: Of inputs and outputs, in training.
        rate: Peak of the learning rate; None for the one that suits the layer.
        coding: What is told of types and times, found by `fit`.
        tasks: What is foretold beside the next item, found by `fit`.
        eight_bit: Whether the recurrent layer computes in 8 bits, as that of a smaller copy does
            (`models.family.compression`); `fit` learns with floats.
    """

    network_class: ClassVar[type[Network]] = Network
    cell: ClassVar[str] = "gru"
    usual_rate: ClassVar[float] = _RATE
    context = 200  # longer windows than training's 100 change no ranking measurably

    def __init__(
        self,
        items: int,
        hidden: int = 128,
        embedding: int = 64,
        dropout: float = 0.35,
        rate: float | None = None,
        coding: Mapping[str, Any] | None = None,
        tasks: Mapping[str, Any] | None = None,
        eight_bit: bool = False,
    ) -> None:
        self.items, self.coding = items, Coding.read(coding)
        self.rate = self.usual_rate if rate is None else rate
        self._shape = {"hidden": hidden, "embedding": embedding, "dropout": dropout}
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self._build(heads_of(tasks, items, embedding))
        self.network.eval()
        if eight_bit:
            self.compute_in_bytes()

    def _build(self, heads: TaskHeads | None) -> None:
        cell: Cell = "lstm" if self.cell == "lstm" else "gru"
        self.network = self.network_class(
            NetworkConfig(self.items, cell, kinds=self.coding.rows, **self._shape)  # type: ignore[arg-type]
        )
        self.eight_bit = False
        if heads is not None:
            self.network.add_module("task_heads", heads)

    def compute_in_bytes(self) -> None:
        """Exchange the recurrent layer for one in 8 bits."""
        self.network.cell = Int8Cell(self.network.cell)  # type: ignore[assignment]
        self.eight_bit = True

    @property
    def bare_size(self) -> int:
        return self.network.config.state_size

    @property
    def repeats(self) -> Tensor:
        return self.network.repeats

    def fit(self, lesson: Lesson) -> None:
        counts = lesson.past.counts(self.items)
        counts[0] = 0
        self.coding = Coding.of(lesson)
        with torch.random.fork_rng():
            torch.manual_seed(lesson.seed)
            heads = TaskHeads(self.items, int(self._shape["embedding"]), lesson.tasks) if lesson.tasks else None
            self._build(heads)
        if heads is not None:
            heads.prepare(Answers.of(lesson.past, lesson.tasks, lesson.ratings))
        config = self.network.config
        with torch.no_grad():
            self.network.item_bias.copy_(popularity_bias(counts))
        settings = TrainingSettings(self.rate, sampled_above=_SAMPLED_ABOVE, negatives=_NEGATIVES)
        scored = self.items if self.items <= _SAMPLED_ABOVE else _NEGATIVES
        weights = sum(parameter.numel() for parameter in self.network.cell.parameters())
        batches = len(lesson.past) // settings.window + 1  # of an epoch on small data
        most = max(_EPOCHS, min(_FEWEST_UPDATES // batches, _MOST_EPOCHS))
        epochs = epochs_for(lesson, weights + scored * config.embedding, most)
        plan = Plan(epochs, patience=max(4, int(epochs // 4)))
        course = _Epochs(self, lesson, plan, counts, settings)
        run_course(self, self.network, lesson, plan, course.one)

    @property
    def task_heads(self) -> TaskHeads | None:
        heads = self.network._modules.get("task_heads")
        return heads if isinstance(heads, TaskHeads) else None

    @torch.no_grad()
    def item_vectors(self, rows: Tensor) -> Tensor:
        vectors: Tensor = self.network.item_embedding(rows)
        return vectors

    def _inputs(self, events: EventBatch) -> tuple[Tensor, Tensor, Tensor]:
        return events.items, self.coding.codes(events.kinds, events.gaps_seconds), events.gaps_seconds

    @torch.no_grad()
    def bare_step(self, state: Tensor, events: EventBatch) -> Tensor:
        items, codes, gaps = self._inputs(events)
        return self.network.sequence(items[:, None], codes[:, None], gaps[:, None], state)[1]

    @torch.no_grad()
    def bare_query(self, state: Tensor) -> Tensor:
        return self.network.query(state[:, : self.network.config.hidden])

    @torch.no_grad()
    def bare_sequence(self, events: EventBatch) -> Tensor:
        outputs, _ = self.network.sequence(*self._inputs(events))
        return self.network.query(outputs)

    @torch.no_grad()
    def bare_last(self, events: EventBatch, steps: Tensor) -> Tensor:
        outputs, _ = self.network.sequence(*self._inputs(events))
        return self.network.query(outputs[torch.arange(len(steps)), steps - 1])

    @torch.no_grad()
    def bare_scores(self, queries: Tensor) -> Tensor:
        return torch.addmm(self.network.item_bias, queries, self.network.item_embedding.weight.T)

    def settings(self) -> dict[str, Any]:
        return {
            "items": self.items,
            **self._shape,
            "rate": self.rate,
            "coding": self.coding.plain(),
            "tasks": plain_tasks(self.task_heads),
            "eight_bit": self.eight_bit,
        }

    def tensors(self) -> dict[str, Tensor]:
        return {name: tensor.detach() for name, tensor in self.network.state_dict().items()}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        self.network.load_state_dict(dict(tensors))


class _Epochs:
    """Epochs of the trainer that first fits and fine-tuning share, over coded and varied histories, with heads."""

    def __init__(
        self, model: Recurrent, lesson: Lesson, plan: Plan, counts: NDArray[np.int64], settings: TrainingSettings
    ) -> None:
        self._model, self._variety, self._device = model, Variety(lesson), lesson.device
        self._heads = model.task_heads
        self._answers: Answers | None = None
        beside = None if self._heads is None else self._beside
        with placed(model.network, self._device):
            self._trainer = Trainer(model.network, counts, plan.epochs, lesson.seed, settings, beside)

    def one(self, report: BatchReport) -> float:
        """Train one epoch; returns its mean loss."""
        past, ratings = self._variety.histories()
        if self._heads is not None:
            self._answers = Answers.of(past, self._heads.tasks, ratings)
        with placed(self._model.network, self._device):
            return self._trainer.epoch(self._model.coding.coded(past), report)

    def _beside(self, query: Tensor, places: Tensor, recent: Tensor) -> Tensor:
        assert self._heads is not None and self._answers is not None
        vectors, item_loss = self._model.network.item_embedding, self._trainer.objective.cross_entropy
        return self._heads.loss(query, recent, places.numpy(), self._answers, item_loss, vectors)


class Gru(Recurrent):
    """GRU4Rec on whole windows, with event kinds and time gaps (Hidasi et al. 2016; Cho et al. 2014)."""

    name: ClassVar[str] = "gru"


class Lstm(Recurrent):
    """The same with an LSTM (Hochreiter and Schmidhuber 1997)."""

    name: ClassVar[str] = "lstm"
    cell: ClassVar[str] = "lstm"


class Rnn(Recurrent):
    """The same with Elman's layer, `RnnNetwork`."""

    name: ClassVar[str] = "rnn"
    network_class: ClassVar[type[Network]] = RnnNetwork
    usual_rate: ClassVar[float] = _ELMAN_RATE


class TimeLstm(Recurrent):
    """The same with `TimeLstmNetwork`."""

    name: ClassVar[str] = "time-lstm"
    cell: ClassVar[str] = "lstm"
    network_class: ClassVar[type[Network]] = TimeLstmNetwork
