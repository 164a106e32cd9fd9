"""What a model is told of an event: its item's vector and its context.

Letters: R rows, D width, V item rows, B windows, T steps.
"""

import torch
from torch import Tensor, nn

from models.family.interface import WEEK_HOURS, EventBatch
from models.network import GAP_SCALE, INITIAL_STD

_KINDS = 3
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


class Context(nn.Module):
    """What surrounds an event: its kind and the time since the one before; hour and weekday when ``clock``.

    Args:
        width: D.
        clock: Whether hours and weekdays are told.
    """

    def __init__(self, width: int, clock: bool = False) -> None:
        super().__init__()
        self.kind = nn.Embedding(_KINDS, width)
        self.gap = nn.Parameter(torch.zeros(width))
        self.hour = nn.Embedding(_DAY, width) if clock else None
        self.weekday = nn.Embedding(WEEK_HOURS // _DAY, width) if clock else None
        for table in (self.kind, self.hour, self.weekday):
            if table is not None:
                nn.init.normal_(table.weight, std=INITIAL_STD)

    def forward(self, events: EventBatch) -> Tensor:
        """Context vectors (..., D) of events (...)."""
        gap = torch.log1p(events.gaps_seconds.clamp(min=0)) / GAP_SCALE
        vector: Tensor = self.kind(events.kinds) + gap[..., None] * self.gap
        if self.hour is not None and self.weekday is not None:
            vector = vector + self.hour(events.clock % _DAY) + self.weekday(events.clock // _DAY)
        return vector
