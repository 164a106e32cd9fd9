"""Attention models: a causal Transformer with an exact cache, and a bidirectional masked autoencoder over a window.

Letters: B users or windows, T steps, W window, D width, A heads, L reach, V item rows, N targets.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Final, Literal

import torch
from torch import Tensor, nn

from models.family.attention import Block, CausalStack, bidirectional_bias, near_first
from models.family.inputs import Context, ItemVectors
from models.family.interface import EventBatch, Lesson
from models.family.module import Module
from models.family.recent import ends, shifted, unfolded
from models.family.sequential import RATE, Asked, Sequential
from models.network import INITIAL_STD, RECENT, UNKNOWN_ROW

_MASKED: Final = 0.3  # share of a training window hidden from the autoencoder
_BACKWARD: Final = 3.0  # how much the first head at first dislikes what comes later
_LAST_ONLY: Final = 0.3  # share of training windows in which only the last item is hidden, as it is when serving


class Transformer(Sequential):
    """SASRec with relative positions: a causal Transformer whose state is the keys and values of L events per layer.

    An event sees itself and the L - 1 events before it in each layer, so two layers look 2 L - 2 events back, as the
    segment memory of Transformer-XL does; `step` and `sequence` agree at any length.

    Args:
        items: V.
        width: D.
        layers: Number of blocks.
        heads: A.
        reach: L.
        dropout: In training.
        loss: ``ce`` (full or sampled softmax) or ``gbce``.
        rate: Peak of the learning rate.
        coding: What is told of types and times, found by `fit`.
        tasks: What is foretold beside the next item, found by `fit`.

    References:
        Kang and McAuley, "Self-attentive sequential recommendation", ICDM 2018; Dai et al., "Transformer-XL", ACL 2019;
        Klenitskiy and Vasilev, "Turning dross into gold loss: is BERT4Rec really better than SASRec?", RecSys 2023
        (cross entropy).
    """

    name: ClassVar[str] = "transformer"

    def __init__(
        self,
        items: int,
        width: int = 64,
        layers: int = 2,
        heads: int = 2,
        reach: int = 50,
        dropout: float = 0.3,
        loss: Literal["ce", "gbce"] = "ce",
        rate: float = RATE,
        coding: Mapping[str, Any] | None = None,
        tasks: Mapping[str, Any] | None = None,
    ) -> None:
        self.items, self.width, self.layers, self.heads = items, width, layers, heads
        self.reach, self.dropout, self.loss, self.rate = reach, dropout, loss, rate
        self.recall(coding, tasks)

    def build(self, lesson: Lesson | None) -> None:
        del lesson
        encoder = CausalStack(self.width, self.layers, self.heads, self.reach, self.dropout)
        self.module = Module(
            ItemVectors(self.items, self.width),
            Context(self.width, coding=self.coding),
            encoder,
            self.items,
            self.dropout,
        ).eval()
        self.context = max(encoder.context, RECENT)

    def settings(self) -> dict[str, Any]:
        return self.described(("items", "width", "layers", "heads", "reach", "dropout", "loss", "rate"))


class MaskedStack(nn.Module):
    """Bidirectional blocks over W places, of which one or more hold the mask instead of an event.

    Args:
        width: D.
        layers: Number of blocks.
        heads: A.
        window: W.
        dropout: In training.
    """

    def __init__(self, width: int, layers: int, heads: int, window: int, dropout: float) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(width, heads, dropout) for _ in range(layers))
        apart = torch.arange(window - 1, -window, -1)  # (2W - 1,) how far a place is before the one that looks
        bias = near_first(heads, apart.abs())
        bias[0, apart < 0] -= _BACKWARD  # else left and right are alike at first, and it takes long to tell them apart
        self.distance = nn.Parameter(bias.flip(1).repeat(layers, 1, 1))
        self.place = nn.Embedding(window, width)  # counted from the end
        nn.init.normal_(self.place.weight, std=INITIAL_STD)
        self.mask = nn.Parameter(torch.randn(width) * INITIAL_STD)
        self.inward, self.after = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x: Tensor, hidden: Tensor, steps: Tensor) -> Tensor:
        """Outputs (B, T, D) of inputs (B, T, D); ``hidden`` (B, T) places hold the mask, ``steps`` (B,) are real."""
        from_end = (steps[:, None] - 1 - torch.arange(x.shape[1])[None]).clamp(min=0)  # (B, T)
        x = self.inward(torch.where(hidden[:, :, None], self.mask, x) + self.place(from_end))
        for number, block in enumerate(self.blocks):
            x = block(x, bidirectional_bias(self.distance[number], steps, x.shape[1]))
        out: Tensor = self.after(x)
        return out


class Bert(Sequential):
    """BERT4Rec: learns to fill in hidden items from both sides; recommends what it would fill in after the last one.

    The state is the window itself: item, kind, gap and hour of the W - 1 latest events.

    Args:
        items: V.
        width: D.
        layers: Number of blocks.
        heads: A.
        window: W, places with the mask's included.
        dropout: In training.
        rate: Peak of the learning rate.
        coding: What is told of types and times, found by `fit`.
        tasks: What is foretold beside the next item, found by `fit`.

    References:
        Sun et al., "BERT4Rec: sequential recommendation with bidirectional encoder representations from Transformer",
        CIKM 2019.
    """

    name: ClassVar[str] = "bert"
    pointwise = True
    item_dropout = 0.0
    smallest_batch = 384  # a third of the places teaches
    negatives = 2048  # with more it gets fewer epochs for its budget: on Amazon Beauty NDCG@10 .033 against .026

    def __init__(
        self,
        items: int,
        width: int = 64,
        layers: int = 2,
        heads: int = 2,
        window: int = 50,
        dropout: float = 0.2,
        rate: float = RATE,
        coding: Mapping[str, Any] | None = None,
        tasks: Mapping[str, Any] | None = None,
    ) -> None:
        self.items, self.width, self.layers, self.heads = items, width, layers, heads
        self.places, self.dropout, self.rate = window, dropout, rate
        self.window = window - 1  # a training window of T steps holds T + 1 events
        self.seen = window - 1
        self.context = max(self.seen, RECENT)
        self.epochs = 40  # a third of the places teaches: it needs more passes
        self.recall(coding, tasks)

    def build(self, lesson: Lesson | None) -> None:
        del lesson
        encoder = MaskedStack(self.width, self.layers, self.heads, self.places, self.dropout)
        vectors, context = ItemVectors(self.items, self.width), Context(self.width, coding=self.coding)
        self.module = Module(vectors, context, encoder, self.items, self.dropout).eval()

    @property
    def bare_size(self) -> int:
        return 4 * self.seen + 1

    def outputs(self, events: EventBatch, targets: Tensor) -> Asked:
        steps = (targets != UNKNOWN_ROW).long().mul(torch.arange(1, targets.shape[1] + 1)).amax(1) + 1  # (B,) events
        items = torch.cat((events.items[:, :1], targets), dim=1)  # (B, T + 1) the window's events
        place = torch.arange(items.shape[1])[None]
        real = place < steps[:, None]
        last = place == steps[:, None] - 1
        hidden = torch.rand(items.shape) < _MASKED
        alone = torch.rand(len(items), 1) < _LAST_ONLY
        hidden = torch.where(alone, last, hidden | last & ~hidden.any(1, keepdim=True)) & real
        x = self.module.inputs(events)
        x = torch.cat((x, x.new_zeros(len(x), 1, x.shape[2])), dim=1)
        # The last event's context is not in the batch of inputs: it is always hidden or it stands as its bare item.
        bare = self.module.vectors(items)
        x = torch.where((last & ~hidden)[:, :, None], bare, x)
        out = self.module.encoder(x, hidden, steps)
        wanted = hidden & (items != UNKNOWN_ROW)
        window, event = wanted.nonzero(as_tuple=True)
        return Asked(out[wanted], items[wanted], window, event, last[wanted])  # what stands before it has seen it

    @torch.no_grad()
    def bare_step(self, state: Tensor, events: EventBatch) -> Tensor:
        window = torch.unflatten(state[:, :-1], 1, (self.seen, 4))
        newest = torch.stack((events.items, events.kinds, events.gaps_seconds, events.clock), dim=1)
        count = (state[:, -1:] + 1).clamp(max=self.seen)
        return torch.cat((shifted(window, newest.to(state.dtype)).flatten(1), count), dim=1)

    @torch.no_grad()
    def bare_query(self, state: Tensor) -> Tensor:
        return self._filled(torch.unflatten(state[:, :-1], 1, (self.seen, 4)), state[:, -1].long())

    @torch.no_grad()
    def bare_sequence(self, events: EventBatch) -> Tensor:
        windows = unfolded(_columns(events), self.seen)  # (B, T, W - 1, 4)
        steps = torch.arange(1, windows.shape[1] + 1).clamp(max=self.seen)
        return torch.stack([self._filled(windows[row], steps) for row in range(len(windows))])

    @torch.no_grad()
    def bare_last(self, events: EventBatch, steps: Tensor) -> Tensor:
        return self._filled(ends(_columns(events), steps, self.seen), steps.clamp(max=self.seen))

    def _filled(self, window: Tensor, steps: Tensor) -> Tensor:
        """What stands after windows (B, W - 1, 4), newest first, of ``steps`` (B,) events: queries (B, D)."""
        longest = max(int(steps.max()) if len(steps) else 0, 1)
        # Oldest first, starting at place 0, the mask right after the newest.
        place = steps[:, None] - 1 - torch.arange(longest)[None]  # (B, T) distance from the newest
        taken = window.gather(1, place.clamp(min=0)[:, :, None].expand(-1, -1, 4))
        events = EventBatch(taken[..., 0].long(), taken[..., 1].long(), taken[..., 2], taken[..., 3].long())
        x = self.module.inputs(events)
        x = torch.cat((x, x.new_zeros(len(x), 1, x.shape[2])), dim=1)
        hidden = torch.arange(longest + 1)[None] == steps[:, None]
        out: Tensor = self.module.encoder(x, hidden, steps + 1)
        return out[torch.arange(len(steps)), steps]

    def settings(self) -> dict[str, Any]:
        return {**self.described(("items", "width", "layers", "heads", "dropout", "rate")), "window": self.places}


def _columns(events: EventBatch) -> Tensor:
    """Events (B, T) as numbers (B, T, 4)."""
    columns = (events.items, events.kinds, events.gaps_seconds, events.clock)
    return torch.stack([column.float() for column in columns], dim=2)
