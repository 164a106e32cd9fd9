"""Recurrent models: Elman's RNN, LSTM, GRU and the time-aware LSTM, all on `models.network.Network`.

A GRU or LSTM fitted here is the network the workers serve: the same parameters under the same names.

Letters: B users, T steps, D embedding width, H hidden width, S state width, V item rows.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Final

import torch
from torch import Tensor, nn

from models.family.course import Plan, epochs_for, run_course
from models.family.interface import EventBatch, Lesson, SequenceModel
from models.fit import popularity_bias
from models.network import Network, NetworkConfig
from models.training import Trainer, TrainingSettings

_SECONDS_PER_UNIT: Final = 3600.0  # of the time-aware decay: an hour away fades short-term memory by a quarter
_RATE: Final = 0.01
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
        # In torch's order: input weight (4H, D), recurrent weight (4H, H), input bias, recurrent bias.
        weight, recurrent, bias, recurrent_bias = self.cell.parameters()
        gates = nn.functional.linear(inputs, weight, bias + recurrent_bias)  # (B, T, 4H)
        hours = gaps_seconds.clamp(min=0).to(inputs.dtype) / _SECONDS_PER_UNIT
        fading = 1 - 1 / torch.log(torch.e + hours)  # (B, T) share of the short-term memory that is lost
        outputs = []
        for step in range(items.shape[1]):
            memory = memory - torch.tanh(self.decay(memory)) * fading[:, step, None]
            i, f, g, o = (gates[:, step] + hidden @ recurrent.T).chunk(4, dim=1)  # torch's order of gates
            memory = torch.sigmoid(f) * memory + torch.sigmoid(i) * torch.tanh(g)
            hidden = torch.sigmoid(o) * torch.tanh(memory)
            outputs.append(hidden)
        return self.dropout(torch.stack(outputs, dim=1)), torch.cat((hidden, memory), dim=1)


class Recurrent(SequenceModel):
    """What the recurrent models share.

    Args:
        items: V.
        hidden: H.
        embedding: D.
        dropout: Of inputs and outputs, in training.
        rate: Peak of the learning rate.
    """

    network_class: ClassVar[type[Network]] = Network
    cell: ClassVar[str] = "gru"
    context = 200  # longer windows than training's 100 change no ranking measurably

    def __init__(
        self, items: int, hidden: int = 128, embedding: int = 64, dropout: float = 0.35, rate: float = _RATE
    ) -> None:
        self.items, self.rate = items, rate
        config = NetworkConfig(items, "lstm" if self.cell == "lstm" else "gru", hidden, embedding, dropout)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.network = self.network_class(config).eval()

    @property
    def state_size(self) -> int:
        return self.network.config.state_size

    def fit(self, lesson: Lesson) -> None:
        counts = lesson.past.counts(self.items)
        counts[0] = 0
        config = self.network.config
        with torch.random.fork_rng():
            torch.manual_seed(lesson.seed)
            self.network = self.network_class(config)
        with torch.no_grad():
            self.network.item_bias.copy_(popularity_bias(counts))
        settings = TrainingSettings(self.rate, sampled_above=_SAMPLED_ABOVE, negatives=_NEGATIVES)
        scored = self.items if self.items <= _SAMPLED_ABOVE else _NEGATIVES
        weights = sum(parameter.numel() for parameter in self.network.cell.parameters())
        batches = len(lesson.past) // settings.window + 1  # of an epoch on small data
        most = max(_EPOCHS, min(_FEWEST_UPDATES // batches, _MOST_EPOCHS))
        epochs = epochs_for(lesson, weights + scored * config.embedding, most)
        plan = Plan(epochs, patience=max(4, int(epochs // 4)))
        trainer = Trainer(self.network, counts, plan.epochs, lesson.seed, settings)
        run_course(self, self.network, lesson, plan, lambda report: trainer.epoch(lesson.past, report))

    @torch.no_grad()
    def step(self, state: Tensor, events: EventBatch) -> Tensor:
        columns = (events.items[:, None], events.kinds[:, None], events.gaps_seconds[:, None])
        return self.network.sequence(*columns, state)[1]

    @torch.no_grad()
    def query(self, state: Tensor) -> Tensor:
        return self.network.query(state[:, : self.network.config.hidden])

    @torch.no_grad()
    def sequence(self, events: EventBatch) -> Tensor:
        outputs, _ = self.network.sequence(events.items, events.kinds, events.gaps_seconds)
        return self.network.query(outputs)

    @torch.no_grad()
    def last(self, events: EventBatch, steps: Tensor) -> Tensor:
        outputs, _ = self.network.sequence(events.items, events.kinds, events.gaps_seconds)
        return self.network.query(outputs[torch.arange(len(steps)), steps - 1])

    @torch.no_grad()
    def item_scores(self, queries: Tensor) -> Tensor:
        scores = torch.addmm(self.network.item_bias, queries, self.network.item_embedding.weight.T)
        scores[:, 0] = -torch.inf
        return scores

    def settings(self) -> dict[str, Any]:
        config = self.network.config
        return {
            "items": self.items,
            "hidden": config.hidden,
            "embedding": config.embedding,
            "dropout": config.dropout,
            "rate": self.rate,
        }

    def tensors(self) -> dict[str, Tensor]:
        return {name: tensor.detach() for name, tensor in self.network.state_dict().items()}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        self.network.load_state_dict(dict(tensors))


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


class TimeLstm(Recurrent):
    """The same with `TimeLstmNetwork`."""

    name: ClassVar[str] = "time-lstm"
    cell: ClassVar[str] = "lstm"
    network_class: ClassVar[type[Network]] = TimeLstmNetwork
