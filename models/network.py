"""The sequence model: item, kind and time-gap inputs, one GRU or LSTM layer, tied output embeddings.

Letters used in shapes: B users or windows, T steps, D embedding width, H hidden width, S state width (GRU: H,
LSTM: 2H), V item rows including row 0, R latest events. The whole model, for one step of one user:

    g     = log1p(gap_seconds) / 16                     (1,)  seconds since the user's previous event, 0 for the first
    x     = E[item] + T[kind] + w_gap * g               (D,)
    state = GRU(x, state)  or  LSTM(x, state)           (S,)  torch's equations, gate order and parameter names
    q     = P h + b                                     (D,)
    score = E q + bias + repeats                        (V,)  row 0, the unknown item, is never recommended

``repeats`` adds a weight to the item of the user's d-th last event, d = 1 to R. It is learnt with the rest: far below 0
where users never come back to an item, above 0 where they do. Without it many of the best scores are of items a user
has just had, since a state resembles what led to it (HR@10 of fits to MovieLens-100K: .155 without, .217 with).
"""

from dataclasses import asdict, dataclass
from typing import Any, Final, Literal, get_args

import torch
from torch import Tensor, nn

from state.errors import RecstreamError
from state.record import RING

Cell = Literal["gru", "lstm"]
UNKNOWN_ROW: Final = 0
GAP_SCALE: Final = 16.0  # log1p of 100 days is 15.97: gaps of a second to a season land in 0..1
MOST_ITEMS: Final = 2**31 - 1  # rows are int32
WIDEST: Final = 2**14  # far above any sensible layer; keeps a damaged configuration from asking for terabytes
RECENT: Final = RING  # R, the events that a user's record keeps
REPEAT_SCALE: Final = 4.0  # of a weight: AdamW moves all weights alike, and these have a long way to go
INITIAL_STD: Final = 0.02  # small tied embeddings keep the first softmax close to the popularity prior


@dataclass(frozen=True, slots=True)
class NetworkConfig:
    """Shape of a network, stored beside its weights.

    Attributes:
        items: Rows of the item table, row 0 (unknown) included: ``len(vocabulary)``.
        cell: ``gru`` or ``lstm``.
        hidden: H, width of the recurrent layer.
        embedding: D, width of the item, kind and query vectors.
        dropout: Share of inputs and outputs zeroed in training, 0 <= dropout < 1.
        kinds: Number of event kinds.

    Raises:
        RecstreamError: A value is out of range.
    """

    items: int
    cell: Cell = "gru"
    hidden: int = 128
    embedding: int = 64
    dropout: float = 0.2
    kinds: int = 3

    def __post_init__(self) -> None:
        wrong = []
        if self.cell not in get_args(Cell):
            wrong.append(f"cell {self.cell!r} is not one of {', '.join(get_args(Cell))}")
        limits = {"items": (2, MOST_ITEMS), "hidden": (1, WIDEST), "embedding": (1, WIDEST), "kinds": (1, 255)}
        for name, (least, most) in limits.items():
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
                wrong.append(f"{name} is {value!r}, not a whole number from {least} to {most}")
        if isinstance(self.dropout, bool) or not isinstance(self.dropout, (int, float)) or not 0 <= self.dropout < 1:
            wrong.append(f"dropout is {self.dropout!r}, not in [0, 1)")
        if wrong:
            what = "This model configuration cannot be built"
            raise RecstreamError(what, "; ".join(wrong), "Correct the value and build the model again")

    @property
    def state_size(self) -> int:
        """S: H for a GRU, 2H for an LSTM (``[h, c]``)."""
        return self.hidden * (2 if self.cell == "lstm" else 1)

    def to_dict(self) -> dict[str, Any]:
        """The configuration as plain values, for JSON."""
        return asdict(self)


class Network(nn.Module):
    """One recurrent layer over item, kind and time gap, scoring every item with the tied embedding table.

    Parameters by name, as they appear in ``state_dict()`` and in a published weights file:
    ``item_embedding.weight`` (V, D), ``kind_embedding.weight`` (kinds, D), ``gap_weight`` (D,),
    ``cell.weight_ih_l0`` (3H or 4H, D), ``cell.weight_hh_l0`` (3H or 4H, H), ``cell.bias_ih_l0``, ``cell.bias_hh_l0``
    (gates in torch's order: GRU r, z, n; LSTM i, f, g, o), ``projection.weight`` (D, H), ``projection.bias`` (D,),
    ``item_bias`` (V,), ``repeat_weight`` (R,).

    References:
        Hidasi et al., "Session-based recommendations with recurrent neural networks", ICLR 2016 (GRU4Rec);
        Press and Wolf, "Using the output embedding to improve language models", EACL 2017 (tied embeddings);
        Ren et al., "RepeatNet: a repeat aware neural recommendation machine", AAAI 2019 (scores of repeats apart).

    Example:
        >>> network = Network(NetworkConfig(items=5, hidden=8, embedding=4)).eval()
        >>> items, kinds, gaps = torch.tensor([[1, 2, 3]]), torch.tensor([[0, 0, 2]]), torch.tensor([[0, 60, 5]])
        >>> outputs, state = network.sequence(items, kinds, gaps)
        >>> outputs.shape, state.shape, network.scores(state).shape
        (torch.Size([1, 3, 8]), torch.Size([1, 8]), torch.Size([1, 5]))
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.item_embedding = nn.Embedding(config.items, config.embedding)
        self.kind_embedding = nn.Embedding(config.kinds, config.embedding)
        self.gap_weight = nn.Parameter(torch.zeros(config.embedding))
        layer: type[nn.GRU] | type[nn.LSTM] = nn.GRU if config.cell == "gru" else nn.LSTM
        self.cell: nn.GRU | nn.LSTM = layer(config.embedding, config.hidden, batch_first=True)
        self.projection = nn.Linear(config.hidden, config.embedding)
        self.item_bias = nn.Parameter(torch.zeros(config.items))
        self.repeat_weight = nn.Parameter(torch.zeros(RECENT))
        self.dropout = nn.Dropout(config.dropout)
        nn.init.normal_(self.item_embedding.weight, std=INITIAL_STD)
        nn.init.normal_(self.kind_embedding.weight, std=INITIAL_STD)

    def initial_state(self, users: int) -> Tensor:
        """The state before the first event: zeros (B, S)."""
        return self.gap_weight.new_zeros(users, self.config.state_size)

    def inputs(self, items: Tensor, kinds: Tensor, gaps_seconds: Tensor) -> Tensor:
        """Input vectors (..., D) of item rows, kinds and gaps (...); negative gaps count as 0."""
        gap = torch.log1p(gaps_seconds.clamp(min=0).to(self.gap_weight.dtype)) / GAP_SCALE
        vectors: Tensor = self.item_embedding(items) + self.kind_embedding(kinds) + gap.unsqueeze(-1) * self.gap_weight
        return vectors

    def sequence(
        self, items: Tensor, kinds: Tensor, gaps_seconds: Tensor, state: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Run whole sequences.

        Args:
            items: Item rows (B, T), integer.
            kinds: Event kinds (B, T), integer.
            gaps_seconds: Seconds since the user's previous event (B, T), 0 for the first.
            state: State to start from (B, S), zeros when None; an LSTM's is ``[h, c]``.

        Returns:
            Outputs h of every step (B, T, H) and the state after the last step (B, S).
        """
        inputs = self.dropout(self.inputs(items, kinds, gaps_seconds))  # (B, T, D)
        start = (self.initial_state(len(items)) if state is None else state).unsqueeze(0)  # (1, B, S)
        if self.config.cell == "lstm":
            hidden, memory = start.chunk(2, dim=2)
            outputs, (hidden, memory) = self.cell(inputs, (hidden.contiguous(), memory.contiguous()))
            end = torch.cat((hidden, memory), dim=2)
        else:
            outputs, end = self.cell(inputs, start.contiguous())
        return self.dropout(outputs), end.squeeze(0)

    def query(self, hidden: Tensor) -> Tensor:
        """Query vectors (..., D) of hidden vectors (..., H)."""
        query: Tensor = self.projection(hidden)
        return query

    @property
    def repeats(self) -> Tensor:
        """What is added to the score of the item of the d-th last event (R,)."""
        return self.repeat_weight * REPEAT_SCALE

    def scores(self, hidden: Tensor, recent: Tensor | None = None) -> Tensor:
        """Scores of every item row; row 0 scores minus infinity.

        Args:
            hidden: Hidden vectors (..., H).
            recent: Item rows of the latest events (..., R), int64, newest first, 0 for none; None without any.

        Returns:
            (..., V).
        """
        scores = nn.functional.linear(self.query(hidden), self.item_embedding.weight, self.item_bias)
        if recent is not None:
            scores = scores.scatter_add(-1, recent, self.repeats.expand(recent.shape))
        unknown = torch.zeros(self.config.items, dtype=torch.bool, device=scores.device)
        unknown[UNKNOWN_ROW] = True
        return scores.masked_fill(unknown, -torch.inf)
