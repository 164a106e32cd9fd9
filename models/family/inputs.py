"""What a model is told of an event: its item's vector and its context.

Letters: R rows, D width, V item rows, B windows, T steps.
"""

import torch
from torch import Tensor, nn

from models.family.coding import Coding
from models.family.interface import WEEK_HOURS, EventBatch
from models.network import GAP_SCALE, INITIAL_STD

_DAY = 24


class ItemVectors(nn.Module):
    """One learnt vector per item: the id embedding.

    Args:
        items: V.
        width: D.
    """

    def __init__(self, items: int, width: int) -> None:
        super().__init__()
        self.table = nn.Embedding(items, width)
        nn.init.normal_(self.table.weight, std=INITIAL_STD)

    def forward(self, rows: Tensor | None) -> Tensor:
        """Vectors (..., D) of item rows (...); all (V, D) when None."""
        weight: Tensor = self.table.weight
        return weight if rows is None else nn.functional.embedding(rows, weight)

    def biases(self, learnt: Tensor, rows: Tensor | None) -> Tensor:
        """Item biases (...) of item rows (...), all (V,) when None, from the learnt ones (V,): just these."""
        return learnt if rows is None else learnt[rows]

    def redraw(self) -> None:
        """Nothing here is drawn at random."""


class Context(nn.Module):
    """What surrounds an event: its kind and the time since the one before; hour and weekday when ``clock``.

    Args:
        width: D.
        clock: Whether hours and weekdays are told.
        coding: What is told of types and times that are missing, and of sessions.
    """

    def __init__(self, width: int, clock: bool = False, coding: Coding = Coding()) -> None:  # noqa: B008 (frozen)
        super().__init__()
        self.coding = coding
        self.kind = nn.Embedding(coding.rows, width)
        self.gap = nn.Parameter(torch.zeros(width))
        self.hour = nn.Embedding(_DAY, width) if clock else None
        self.weekday = nn.Embedding(WEEK_HOURS // _DAY, width) if clock else None
        for table in (self.kind, self.hour, self.weekday):
            if table is not None:
                nn.init.normal_(table.weight, std=INITIAL_STD)

    def forward(self, events: EventBatch) -> Tensor:
        """Context vectors (..., D) of events (...)."""
        gap = torch.log1p(events.gaps_seconds.clamp(min=0)) / GAP_SCALE
        vector: Tensor = self.kind(self.coding.codes(events.kinds, events.gaps_seconds)) + gap[..., None] * self.gap
        if self.hour is not None and self.weekday is not None:
            vector = vector + self.hour(events.clock % _DAY) + self.weekday(events.clock // _DAY)
        return vector
