"""Smaller models: item tables in half precision or 8 bits, recurrent layers in 8 bits, small weights set to zero.

Letters: V item rows, D width, R rows of a matrix.

What is stored shrinks; for computing, values are turned back to float32 when the model is restored, so that scores come
from the same code. Quality is what the rounded values give.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from torch import Tensor

from models.family.interface import SequenceModel
from models.family.registry import rebuild
from state.errors import RecstreamError

Kind = Literal["fp16", "int8", "pruned"]
KINDS: Final[tuple[Kind, ...]] = ("fp16", "int8", "pruned")
PRUNED: Final = 0.5  # share of each matrix's smallest weights set to zero
_LEVELS: Final = 127
_INDEX_BYTES: Final = 1 / 8  # of a value of a pruned matrix: one bit says whether it is there


@dataclass(frozen=True, slots=True)
class Compressed:
    """A model with rounded values.

    Attributes:
        model: The model, computing with what was stored.
        size: Bytes of what is stored.
        original: Bytes of the model it was made from.
    """

    model: SequenceModel
    size: int
    original: int


def compress(model: SequenceModel, kind: Kind) -> Compressed:
    """Make a smaller copy; vectors (biases) and whole numbers stay as they are.

    Args:
        model: A fitted model.
        kind: ``fp16`` halves matrices; ``int8`` keeps 8 bits and one scale per row; ``pruned`` drops the smaller half.

    Raises:
        RecstreamError: There is no such kind.

    References:
        Jacob et al., "Quantization and training of neural networks for efficient integer-arithmetic-only inference",
        CVPR 2018; Han et al., "Learning both weights and connections for efficient neural networks", NeurIPS 2015.

    Example:
        >>> from models.family.registry import build
        >>> small = compress(build("gru", 100), "int8")
        >>> small.size < 0.3 * small.original
        True
    """
    if kind not in KINDS:
        what = f"There is no compression {kind!r}"
        raise RecstreamError(what, f"there are {', '.join(KINDS)}", "Name one of these")
    tensors, size, original = dict[str, Tensor](), 0, 0
    for name, tensor in model.tensors().items():
        bytes_ = tensor.numel() * tensor.element_size()
        original += bytes_
        if tensor.ndim < 2 or not tensor.is_floating_point() or not tensor.numel():
            tensors[name], size = tensor, size + bytes_
        else:
            tensors[name], stored = _ROUNDED[kind](tensor)
            size += stored
    copy = rebuild(model.name, model.settings())
    copy.restore(tensors)
    return Compressed(copy, size, original)


def _half(tensor: Tensor) -> tuple[Tensor, int]:
    return tensor.half().to(tensor.dtype), 2 * tensor.numel()


def _byte(tensor: Tensor) -> tuple[Tensor, int]:
    """Eight bits a value, one scale a row: the largest value of a row is 127 of its scale."""
    rows = tensor.flatten(1)
    scale = rows.abs().amax(1, keepdim=True).clamp(min=1e-12) / _LEVELS
    rounded = (rows / scale).round().clamp(-_LEVELS, _LEVELS) * scale
    return rounded.view_as(tensor), tensor.numel() + 4 * len(rows)


def _pruned(tensor: Tensor) -> tuple[Tensor, int]:
    """The larger half by magnitude; a bit map and the values kept are stored."""
    kept = tensor.numel() - int(PRUNED * tensor.numel())
    limit = tensor.abs().flatten().kthvalue(tensor.numel() - kept + 1).values
    thin = tensor.masked_fill(tensor.abs() < limit, 0.0)
    return thin, int(4 * kept + _INDEX_BYTES * tensor.numel())


_ROUNDED: Final[Mapping[str, Callable[[Tensor], tuple[Tensor, int]]]] = {
    "fp16": _half,
    "int8": _byte,
    "pruned": _pruned,
}
