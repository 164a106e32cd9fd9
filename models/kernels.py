"""What the compiled kernels of the fusion share: how they are compiled, and arithmetic that vectorises."""

from typing import Any, Final

import numba as nb
import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic
from numpy.typing import NDArray

# Without numba's reference counting (`_nrt`): the kernels allocate nothing, and counting references to arrays handed
# from function to function took two thirds of the time. Arrays are kept alive by the Python caller.
_OPTIONS: Final[dict[str, Any]] = {
    "cache": True,
    "nogil": True,
    "error_model": "numpy",
    "fastmath": {"contract", "nsz", "arcp", "reassoc"},
    "_nrt": False,
}
LINE: Final = 64  # bytes of a cache line
jit = nb.njit(**_OPTIONS)
# An array is handed over as some nine values: for a function of a few instructions that is most of its time.
inlined = nb.njit(**_OPTIONS, forceinline=True)


@intrinsic  # type: ignore[untyped-decorator]
def prefetch(typing_context: Any, array: Any, row: Any, byte: Any) -> Any:
    """Have the cache line at ``byte`` of a row of an array (C, ...) fetched, without waiting for it."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        view = context.make_array(signature.args[0])(context, builder, arguments[0])
        stride = builder.extract_value(view.strides, 0)
        start = builder.add(builder.ptrtoint(view.data, stride.type), arguments[2])
        pointer = builder.inttoptr(builder.add(start, builder.mul(arguments[1], stride)), ir.IntType(8).as_pointer())
        word = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [pointer.type, word, word, word])
        function = builder.module.declare_intrinsic("llvm.prefetch", (pointer.type,), kind)
        builder.call(function, [pointer, word(0), word(3), word(1)])  # to read, into all levels, data
        return context.get_dummy_value()

    return types.void(array, types.intp, types.intp), emit


@inlined  # type: ignore[untyped-decorator]
def padded(n: int) -> int:
    """Columns to compute for N candidates: whole vectors, since the remainder of a vectorised loop runs one by one."""
    return (n + 15) // 16 * 16


@inlined  # type: ignore[untyped-decorator]
def fast_log(x: np.float32) -> np.float32:
    """Natural logarithm of a positive normal number within 1e-4, in a form that vectorises (Chebyshev on [1, 2))."""
    bits = np.float32(x).view(np.int32)
    exponent = np.float32((bits >> np.int32(23)) - np.int32(127))
    m = np.int32((bits & np.int32(0x7FFFFF)) | np.int32(0x3F800000)).view(np.float32)
    p = np.float32(-0.05437093) * m + np.float32(0.43393244)
    p = p * m + np.float32(-1.44059216)
    p = p * m + np.float32(2.79283652)
    p = p * m + np.float32(-1.73172644)
    return exponent * np.float32(0.6931471806) + p


def grown(array: NDArray[Any], capacity: int, fill: float = 0) -> NDArray[Any]:
    """A copy of (C, ...) with room for ``capacity`` rows, new rows filled with ``fill``."""
    larger = np.full((capacity, *array.shape[1:]), fill, array.dtype)
    larger[: len(array)] = array
    return larger
