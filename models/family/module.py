"""What is trained of an attention or content model: item vectors, context, encoder and item biases.

Letters: B users or windows, T steps, D width, V item rows, R latest events.
"""

import torch
from torch import Tensor, nn

from models.family.inputs import Context
from models.family.interface import EventBatch
from models.network import RECENT, REPEAT_SCALE


class Module(nn.Module):
    """Item vectors, context, encoder, item biases and weights of repeats, under one name each.

    Args:
        vectors: Item vectors by row: a module from rows (...) to (..., D), which also has the last word on biases.
        context: Context vectors of events.
        encoder: From inputs to outputs (B, T, D), with its own states.
        items: V.
        dropout: Of inputs, in training.
    """

    def __init__(self, vectors: nn.Module, context: Context, encoder: nn.Module, items: int, dropout: float) -> None:
        super().__init__()
        self.vectors, self.context, self.encoder = vectors, context, encoder
        self.item_bias = nn.Parameter(torch.zeros(items))
        self.repeat_weight = nn.Parameter(torch.zeros(RECENT))
        self.dropout = nn.Dropout(dropout)
        self._kept: tuple[Tensor, Tensor] | None = None

    def train(self, mode: bool = True) -> "Module":
        """Switch between training and evaluation; item vectors kept for evaluation are made anew."""
        self._kept = None
        return super().train(mode)

    @property
    def repeats(self) -> Tensor:
        """What is added to the score of the item of the d-th last event (R,)."""
        return self.repeat_weight * REPEAT_SCALE

    def table(self) -> tuple[Tensor, Tensor]:
        """All item vectors (V, D) and biases (V,), computed once while the module is evaluated."""
        if self.training:
            return self.vectors(None), self.biases(None)
        if self._kept is None:
            self._kept = self.vectors(None).detach(), self.biases(None).detach()
        return self._kept

    def biases(self, rows: Tensor | None) -> Tensor:
        """Item biases (...) of item rows (...); all (V,) when None."""
        bias: Tensor = self.vectors.biases(self.item_bias, rows)  # type: ignore[operator]
        return bias

    def inputs(self, events: EventBatch) -> Tensor:
        """Input vectors (..., D) of events (...)."""
        x: Tensor = self.dropout(self.vectors(events.items) + self.context(events))
        return x
