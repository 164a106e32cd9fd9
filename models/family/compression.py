"""Smaller models: matrices in half precision or 8 bits, small weights set to zero, recurrent layers computed in 8 bits.

What is stored shrinks; but for the last kind (`models.family.dynamic`), values are turned back to float32 when the
model is restored, so that scores come from the same code. Quality is what the rounded values give.

Letters: V item rows, D width, R rows of a matrix.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from torch import Tensor

from models.family.dynamic import LEVELS
from models.family.interface import SequenceModel
from models.family.recurrent import Gru, Lstm, Recurrent, Rnn, TimeLstm
from models.family.registry import rebuild
from models.family.sessions import InSessions
from state.errors import RecstreamError

Kind = Literal["fp16", "int8", "pruned", "dynamic"]
KINDS: Final[tuple[Kind, ...]] = ("fp16", "int8", "pruned", "dynamic")
PRUNED: Final = 0.5  # share of each matrix's smallest weights set to zero
CELLS: Final = (Rnn.name, Lstm.name, Gru.name, TimeLstm.name)
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
        kind: ``fp16`` halves matrices; ``int8`` keeps 8 bits and one scale per row; ``pruned`` drops the smaller half;
            ``dynamic`` computes the recurrent layer in 8 bits and leaves the rest as it is.

    Raises:
        RecstreamError: There is no such kind, or not of this model.

    References:
        Jacob et al., "Quantization and training of neural networks for efficient integer-arithmetic-only inference",
        CVPR 2018; Han et al., "Learning both weights and connections for efficient neural networks", NeurIPS 2015.

    Example:
        >>> from models.family.registry import build
        >>> small = compress(build("gru", 100), "int8")
        >>> small.size < 0.3 * small.original
        True
    """
    require_kind((model.inner if isinstance(model, InSessions) else model).name, kind)
    copy = rebuild(model.name, model.settings())
    if kind == "dynamic":
        copy.restore(model.tensors())
        recurrent = copy.inner if isinstance(copy, InSessions) else copy
        assert isinstance(recurrent, Recurrent)
        recurrent.compute_in_bytes()
        return Compressed(copy, bytes_of(copy), bytes_of(model))
    tensors, size = dict[str, Tensor](), 0
    for name, tensor in model.tensors().items():
        if tensor.ndim < 2 or not tensor.is_floating_point() or not tensor.numel():
            tensors[name], kept = tensor, tensor.numel() * tensor.element_size()
        else:
            tensors[name], kept = _ROUNDED[kind](tensor)
        size += kept
    copy.restore(tensors)
    return Compressed(copy, size, bytes_of(model))


def bytes_of(model: SequenceModel) -> int:
    """Bytes of what a model keeps."""
    return sum(tensor.numel() * tensor.element_size() for tensor in model.tensors().values())


def require_kind(model: str, kind: str) -> None:
    """Check that there is such a smaller copy of a model.

    Raises:
        RecstreamError: There is none.
    """
    if kind not in KINDS:
        what = f"There is no compression {kind!r}"
        raise RecstreamError(what, f"there are {', '.join(KINDS)}", "Name one of these")
    if kind == "dynamic" and model not in CELLS:
        what = f"{model} has no recurrent layer that could compute in 8 bits"
        raise RecstreamError(what, f"only {', '.join(CELLS)} have", f"Use {model}:int8, which stores it in 8 bits")


def _half(tensor: Tensor) -> tuple[Tensor, int]:
    return tensor.half().to(tensor.dtype), 2 * tensor.numel()


def _byte(tensor: Tensor) -> tuple[Tensor, int]:
    """Eight bits a value, one scale a row: the largest value of a row is 127 of its scale."""
    rows = tensor.flatten(1)
    scale = rows.abs().amax(1, keepdim=True).clamp(min=1e-12) / LEVELS
    rounded = (rows / scale).round().clamp(-LEVELS, LEVELS) * scale
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
