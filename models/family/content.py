"""The fusion model: what an item is (text, attributes) and its id, gated, with the context of every event.

Letters: B users or windows, T steps, D width, E text width, F attribute values, V item rows.
"""

from typing import Any, ClassVar, Final, Literal

import torch
from torch import Tensor, nn

from models.family.attention import CausalStack, Recurrence
from models.family.catalogue import Catalogue
from models.family.inputs import Context
from models.family.interface import Lesson
from models.family.sequential import RATE, Module, Sequential, plain
from models.family.text import text_vectors
from models.network import INITIAL_STD

Encoder = Literal["transformer", "gru"]
_ID_DROPOUT: Final = 0.1  # share of item rows without their id in a training step, so that content alone says enough
_HIDDEN: Final = 128
_MOST_ATTRIBUTES: Final = 2000
_CELLS: Final = 20_000_000  # of the table of attributes, 80 MB; with more items only more frequent values are told


class GatedItems(nn.Module):
    """Item vectors: content, plus the id embedding through a gate that opens with what was learnt of the item.

        content = W_t text + W_a attributes
        gate    = sigmoid(w log(1 + n) + W_g content + b),  0 for items never learnt (n = 0)
        vector  = content + gate * E[item]

    Args:
        items: V.
        width: D.
        text: E, 0 without texts.
        attributes: F, 0 without attributes.
    """

    text: Tensor
    attributes: Tensor
    seen: Tensor

    def __init__(self, items: int, width: int, text: int, attributes: int) -> None:
        super().__init__()
        self.register_buffer("text", torch.zeros(items, text))
        self.register_buffer("attributes", torch.zeros(items, attributes))
        self.register_buffer("seen", torch.zeros(items))  # log(1 + n)
        self.table = nn.Embedding(items, width)
        self.text_weight = nn.Parameter(torch.zeros(text, width))
        self.attribute_weight = nn.Parameter(torch.zeros(attributes, width))
        self.gate = nn.Linear(width, width)
        self.gate_seen = nn.Parameter(torch.full((width,), 0.5))
        for weight in (self.table.weight, self.text_weight, self.attribute_weight):
            nn.init.normal_(weight, std=INITIAL_STD)
        nn.init.zeros_(self.gate.weight)
        nn.init.constant_(self.gate.bias, 1.0)

    def describe(self, text: Tensor, attributes: Tensor, counts: Tensor) -> None:
        """Take over texts (V, E), attributes (V, F) and how often each item is learnt from (V,)."""
        self.text.copy_(text)
        self.attributes.copy_(attributes)
        self.seen.copy_(torch.log1p(counts.float()))

    def forward(self, rows: Tensor | None) -> Tensor:
        """Vectors (..., D) of item rows (...); all (V, D) when None."""
        if rows is None:
            rows = torch.arange(len(self.seen))
        content = self.text[rows] @ self.text_weight + self.attributes[rows] @ self.attribute_weight  # (..., D)
        seen = self.seen[rows][..., None]
        gate = torch.sigmoid(self.gate(content) + seen * self.gate_seen) * (seen > 0)
        if self.training:
            gate = gate * (torch.rand(seen.shape) >= _ID_DROPOUT)
        vectors: Tensor = content + gate * nn.functional.embedding(rows, self.table.weight)
        return vectors


class Fusion(Sequential):
    """Content, attributes, context and id in one model, with a Transformer or a GRU over them.

    Items that no event was learnt from are recommended by their content.

    Args:
        items: V.
        width: D.
        encoder: ``transformer`` or ``gru``.
        layers: Blocks of the Transformer.
        heads: Heads of the Transformer.
        reach: Events a block of the Transformer sees.
        dropout: In training.
        text: E, found by `fit`.
        attributes: F, found by `fit`.
        clock: Whether hours and weekdays are told, found by `fit`.
        text_source: What made the text vectors, for reports.
        rate: Peak of the learning rate.

    References:
        Hou et al., "Towards universal sequence representation learning for recommender systems", KDD 2022 (text as item
        representation); Arevalo et al., "Gated multimodal units for information fusion", ICLR workshop 2017 (gates).
    """

    name: ClassVar[str] = "fusion"

    def __init__(
        self,
        items: int,
        width: int = 64,
        encoder: Encoder = "transformer",
        layers: int = 2,
        heads: int = 2,
        reach: int = 50,
        dropout: float = 0.3,
        text: int = 0,
        attributes: int = 0,
        clock: bool = False,
        text_source: str = "none",
        rate: float = RATE,
    ) -> None:
        self.items, self.width, self.encoder, self.layers, self.heads = items, width, encoder, layers, heads
        self.reach, self.dropout, self.text, self.attributes, self.clock = reach, dropout, text, attributes, clock
        self.text_source, self.rate = text_source, rate
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self._assemble()

    def build(self, lesson: Lesson | None) -> None:
        if lesson is None:
            return self._assemble()
        texts, self.text_source = _texts(lesson.catalogue, lesson)
        table, _ = lesson.catalogue.attribute_table(min(_MOST_ATTRIBUTES, max(1, _CELLS // self.items)))
        self.text, self.attributes, self.clock = texts.shape[1], table.shape[1], lesson.timed
        self._assemble()
        counts = torch.from_numpy(lesson.past.counts(self.items))
        self.module.vectors.describe(texts, torch.from_numpy(table), counts)  # type: ignore[operator]

    def _assemble(self) -> None:
        stack: Recurrence | CausalStack
        if self.encoder == "gru":
            stack = Recurrence(self.width, _HIDDEN, self.dropout)
        else:
            stack = CausalStack(self.width, self.layers, self.heads, self.reach, self.dropout)
        vectors = GatedItems(self.items, self.width, self.text, self.attributes)
        context = Context(self.width, self.clock)
        self.module = Module(vectors, context, stack, self.items, self.dropout).eval()
        self.context = stack.context

    def fit(self, lesson: Lesson) -> None:
        super().fit(lesson)
        counts = torch.from_numpy(lesson.past.counts(self.items))
        with torch.no_grad():  # an item never learnt competes like the average one, not like the least popular
            bias = self.module.item_bias
            known = (counts > 0) & (torch.arange(self.items) > 0)
            if known.any():
                bias[~known] = bias[known].mean()

    def settings(self) -> dict[str, Any]:
        names = ("items", "width", "encoder", "layers", "heads", "reach", "dropout", "text", "attributes", "clock")
        return plain(self, (*names, "text_source", "rate"))


def _texts(catalogue: Catalogue, lesson: Lesson) -> tuple[Tensor, str]:
    """Text vectors (V, E) and what made them; E = 0 without texts."""
    if not catalogue.has_text:
        return torch.zeros(len(catalogue), 0), "none: the items have no text"
    vectors, source = text_vectors(catalogue.texts, lambda share: lesson.report(0.0, f"item texts {share:.0%}"))
    return torch.from_numpy(vectors), source
