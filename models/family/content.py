"""The fusion model: what an item is (text, attributes) and its id, gated, with the context of every event.

Letters: B users or windows, T steps, D width, E text width, F attribute values, V item rows.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.family.asking import queries_before
from models.family.attention import CausalStack, Recurrence
from models.family.catalogue import Catalogue
from models.family.course import held_out_sample
from models.family.inputs import Context
from models.family.interface import Lesson
from models.family.module import Module
from models.family.sequential import RATE, Sequential
from models.family.text import text_vectors
from models.fit import popularity_bias
from models.network import INITIAL_STD, RECENT, UNKNOWN_ROW

Encoder = Literal["transformer", "gru"]
_ID_DROPOUT: Final = 0.1  # share of item rows without their id in a batch, so that content alone says enough
_TEXT_DROPOUT: Final = 0.5  # share of a text's numbers left out in a batch: a few hundred of them could name every item
_CONTENT_DECAY: Final = 0.3  # AdamW's decay of what reads contents
_HIDDEN: Final = 128
_MOST_ATTRIBUTES: Final = 2000
_ATTRIBUTE_CELLS: Final = (
    20_000_000  # of the table of attributes, 80 MB; with more items only more frequent values are told
)
_SHOWN: Final = 10
_MOST_SHOWN: Final = 0.1  # share of the places for items never learnt
_MOST_WELCOME: Final = 20.0  # nats
_HALVINGS: Final = 20
_CELLS: Final = 2**23  # scores kept at once, 32 MB


class GatedItems(nn.Module):
    """Item vectors: content, plus the id embedding through a gate that opens with what was learnt of the item.

        content = W_t text + W_a attributes, learnt vectors standing for a text and for attributes that are missing
        gate    = sigmoid(w log(1 + n) + W_g content + b),  0 for items never learnt (n = 0)
        vector  = content + gate * E[item]
        bias    = b + w_t text + w_a attributes + (how far the item's own bias is from b; never learnt: welcome)

    In every training batch a tenth of the items counts as never learnt: content has to say what it can by itself, how
    popular an item will be included.

    Args:
        items: V.
        width: D.
        text: E, 0 without texts.
        attributes: F, 0 without attributes.
    """

    text: Tensor
    attributes: Tensor
    seen: Tensor
    lacking: Tensor
    welcome: Tensor

    def __init__(self, items: int, width: int, text: int, attributes: int) -> None:
        super().__init__()
        self.register_buffer("text", torch.zeros(items, text))
        self.register_buffer("attributes", torch.zeros(items, attributes))
        self.register_buffer("seen", torch.zeros(items))  # log(1 + n)
        self.register_buffer("lacking", torch.zeros(items, 2))  # 1 where other items have a text, attributes
        self.register_buffer("welcome", torch.zeros(()))  # added to the bias of items never learnt
        self.table = nn.Embedding(items, width)
        self.text_weight = nn.Parameter(torch.zeros(text, width))
        self.attribute_weight = nn.Parameter(torch.zeros(attributes, width))
        self.text_bias = nn.Parameter(torch.zeros(text))
        self.attribute_bias = nn.Parameter(torch.zeros(attributes))
        self.without = nn.Parameter(torch.zeros(2, width))  # text, attributes
        self.without_bias = nn.Parameter(torch.zeros(2))
        self.typical = nn.Parameter(torch.zeros(()))  # b
        self.read = torch.ones(text)  # 0 for numbers of a text left out in this batch, else what makes up for them
        self.absent = torch.zeros(items, dtype=torch.bool)  # counted as never learnt in this batch
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
        for column, known in enumerate((text.any(1), attributes.any(1))):
            self.lacking[:, column] = (~known).float() if known.any() else 0.0
        popular = popularity_bias(counts.numpy())[counts.numpy() > 0]
        with torch.no_grad():
            self.typical.fill_(float(popular.mean()) if len(popular) else 0.0)

    def forward(self, rows: Tensor | None) -> Tensor:
        """Vectors (..., D) of item rows (...); all (V, D) when None."""
        rows = self._rows(rows)
        content, seen = self.content(rows), self.seen[rows][..., None]
        gate = torch.sigmoid(self.gate(content) + seen * self.gate_seen) * (seen > 0)
        if self.training:
            gate = gate * ~self.absent[rows][..., None]
        vectors: Tensor = content + gate * nn.functional.embedding(rows, self.table.weight)
        return vectors

    def biases(self, learnt: Tensor, rows: Tensor | None) -> Tensor:
        """Item biases (...) of item rows (...), all (V,) when None: what content says, and the learnt ones (V,)."""
        rows = self._rows(rows)
        known = self.seen[rows] > 0
        if self.training:
            known = known & ~self.absent[rows]
        content = self.content_biases(rows)
        own = content + learnt[rows] - self.typical
        return torch.where(known, own, content if self.training else content + self.welcome)

    def content(self, rows: Tensor) -> Tensor:
        """What content alone makes of item rows (...): (..., D)."""
        content: Tensor = self._text(rows) @ self.text_weight + self.attributes[rows] @ self.attribute_weight
        return content + self.lacking[rows] @ self.without

    def content_biases(self, rows: Tensor) -> Tensor:
        """How popular content alone lets item rows (...) be expected to be: biases (...)."""
        content: Tensor = self._text(rows) @ self.text_bias + self.attributes[rows] @ self.attribute_bias
        return self.typical + content + self.lacking[rows] @ self.without_bias

    def _text(self, rows: Tensor) -> Tensor:
        return self.text[rows] * self.read if self.training else self.text[rows]

    def _rows(self, rows: Tensor | None) -> Tensor:
        return torch.arange(len(self.seen)) if rows is None else rows

    def redraw(self) -> None:
        """Draw the items that count as never learnt, and the numbers of texts that are read, until the next call."""
        self.absent = torch.rand(len(self.seen)) < _ID_DROPOUT
        self.read = (torch.rand(len(self.read)) >= _TEXT_DROPOUT) / (1 - _TEXT_DROPOUT)


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
        coding: What is told of types and times, found by `fit`.
        tasks: What is foretold beside the next item, found by `fit`.

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
        coding: Mapping[str, Any] | None = None,
        tasks: Mapping[str, Any] | None = None,
    ) -> None:
        self.items, self.width, self.encoder, self.layers, self.heads = items, width, encoder, layers, heads
        self.reach, self.dropout, self.text, self.attributes, self.clock = reach, dropout, text, attributes, clock
        self.text_source, self.rate = text_source, rate
        self.recall(coding, tasks)

    def build(self, lesson: Lesson | None) -> None:
        if lesson is None:
            return self._assemble()
        texts, self.text_source = _texts(lesson.catalogue, lesson)
        table, _ = lesson.catalogue.attribute_table(min(_MOST_ATTRIBUTES, max(1, _ATTRIBUTE_CELLS // self.items)))
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
        context = Context(self.width, self.clock, self.coding)
        self.module = Module(vectors, context, stack, self.items, self.dropout).eval()
        self.context = max(stack.context, RECENT)

    def decay(self, name: str, parameter: nn.Parameter) -> float:
        reads = name.startswith(("vectors.text", "vectors.attribute"))
        return _CONTENT_DECAY if reads else super().decay(name, parameter)

    def fit(self, lesson: Lesson) -> None:
        super().fit(lesson)
        sample = held_out_sample(lesson)
        if sample is not None and (self.text or self.attributes):
            self._welcome(lesson, sample)

    @torch.no_grad()
    def _welcome(self, lesson: Lesson, sample: NDArray[np.int64]) -> None:
        """Find what to add to items never learnt so that they are shown as often as other items on average.

        What such an item brings is known less well than what the best known items bring, so by expectation alone none
        would ever be among the first ten. On held-out events they get the share of places that they are of the items,
        a tenth at most: most of a catalogue that nobody ever wanted is not new.
        """
        vectors: GatedItems = self.module.vectors  # type: ignore[assignment]
        new = vectors.seen == 0
        new[UNKNOWN_ROW] = False
        share = min(float(new.sum()) / max(self.items - 1, 1), _MOST_SHOWN)
        if not share or int((~new).sum()) <= _SHOWN:
            return
        rng = np.random.default_rng(lesson.seed)
        most = max(1, _CELLS // self.items)
        sample = sample if len(sample) <= most else np.sort(rng.choice(sample, most, replace=False))
        scores = self.item_scores(queries_before(self, lesson.source, sample))  # (N, V)
        known = scores.masked_fill(new, -torch.inf).topk(_SHOWN, dim=1).values
        fresh = scores[:, new].topk(min(_SHOWN, int(new.sum())), dim=1).values
        low, high = -_MOST_WELCOME, _MOST_WELCOME
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            best = torch.cat((known, fresh + middle), dim=1).topk(_SHOWN, dim=1).indices
            shown = float((best >= _SHOWN).float().mean())
            low, high = (middle, high) if shown < share else (low, middle)
        vectors.welcome.fill_((low + high) / 2)
        self.module.eval()  # the item table kept for evaluation is made anew

    def settings(self) -> dict[str, Any]:
        names = ("items", "width", "encoder", "layers", "heads", "reach", "dropout", "text", "attributes", "clock")
        return self.described((*names, "text_source", "rate"))


def _texts(catalogue: Catalogue, lesson: Lesson) -> tuple[Tensor, str]:
    """Text vectors (V, E) and what made them; E = 0 without texts."""
    if not catalogue.has_text:
        return torch.zeros(len(catalogue), 0), "none: the items have no text"
    vectors, source = text_vectors(catalogue.texts, lambda share: lesson.report(0.0, f"item texts {share:.0%}"))
    return torch.from_numpy(vectors), source
