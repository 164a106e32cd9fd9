"""Vectors of 16 float32 for kernels that the compiler does not vectorise well by itself.

It vectorises a loop over one or two rows, with checks before each that no two of them overlap; at 60 candidates these
checks take longer than the work. A kernel written with these reads 16 columns once, keeps them in registers through all
that is to be done, and writes the results. Where a machine's registers are shorter LLVM splits the vectors.

    for k in range(0, padded(n), LANES):
        x = lanes(f, j, k)
        put(scores, k, weight * x + lanes(scores, k))
"""

import operator
from typing import Any, Final

from llvmlite import ir
from numba.core import types
from numba.core.imputils import lower_builtin
from numba.core.typing.templates import ConcreteTemplate, infer_global, signature
from numba.extending import intrinsic, models, register_model

from models.vectors import (
    FAST,
    FLOAT,
    VECTOR,
    WORDS,
    bits_of,
    constant,
    every,
    function,
    pointer,
    splat,
)

_LOG: Final = (-0.05437093, 0.43393244, -1.44059216, 2.79283652, -1.73172644)  # as in `models.kernels.fast_log`
_EXP: Final = (0.01367031, 0.05174500, 0.24160436, 0.69297292, 1.00000349)


class Lanes(types.Type):
    """16 float32 in registers, as numba types them."""

    def __init__(self) -> None:
        super().__init__(name="float32x16")


FLOATS: Final = Lanes()


@register_model(Lanes)
class _LanesModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, VECTOR)


def _polynomial(builder: Any, coefficients: tuple[float, ...], x: Any) -> Any:
    p = constant(coefficients[0])
    for coefficient in coefficients[1:]:
        p = builder.fadd(builder.fmul(p, x, flags=FAST), constant(coefficient), flags=FAST)
    return p


def _binary(operation: Any, instruction: str) -> None:
    @infer_global(operation)
    class _Typed(ConcreteTemplate):  # type: ignore[misc]
        cases = (
            signature(FLOATS, FLOATS, FLOATS),
            signature(FLOATS, types.float32, FLOATS),
            signature(FLOATS, FLOATS, types.float32),
        )

    def lower(_context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        sides = [
            value if kind == FLOATS else splat(builder, value) for kind, value in zip(sig.args, arguments, strict=True)
        ]
        return getattr(builder, instruction)(*sides, flags=FAST)

    for left, right in (
        (FLOATS, FLOATS),
        (types.float32, FLOATS),
        (FLOATS, types.float32),
    ):
        lower_builtin(operation, left, right)(lower)


_binary(operator.add, "fadd")
_binary(operator.iadd, "fadd")
_binary(operator.sub, "fsub")
_binary(operator.mul, "fmul")


@intrinsic  # type: ignore[untyped-decorator]
def spread(_typing: Any, value: Any) -> Any:
    """The same number in every lane."""

    def emit(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        return splat(builder, context.cast(builder, arguments[0], sig.args[0], types.float32))

    return FLOATS(value), emit


def _loaded(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
    return builder.load(pointer(context, builder, sig.args[0], arguments[0], arguments[1:], VECTOR), align=4)


def _stored(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
    place = pointer(context, builder, sig.args[0], arguments[0], arguments[1:-1], VECTOR)
    builder.store(arguments[-1], place, align=4)
    return context.get_dummy_value()


@intrinsic  # type: ignore[untyped-decorator]
def lanes(_typing: Any, array: Any, row: Any, column: Any) -> Any:
    """Elements ``column`` to ``column + 15`` of a row of an array (R, C)."""
    return FLOATS(array, types.intp, types.intp), _loaded


@intrinsic  # type: ignore[untyped-decorator]
def lanes_of(_typing: Any, array: Any, column: Any) -> Any:
    """Elements ``column`` to ``column + 15`` of an array (C,)."""
    return FLOATS(array, types.intp), _loaded


@intrinsic  # type: ignore[untyped-decorator]
def put(_typing: Any, array: Any, row: Any, column: Any, values: Any) -> Any:
    """Write elements ``column`` to ``column + 15`` of a row of an array (R, C)."""
    return types.void(array, types.intp, types.intp, values), _stored


@intrinsic  # type: ignore[untyped-decorator]
def put_in(_typing: Any, array: Any, column: Any, values: Any) -> Any:
    """Write elements ``column`` to ``column + 15`` of an array (C,)."""
    return types.void(array, types.intp, values), _stored


def _chosen(comparison: str) -> Any:
    def typed(_typing: Any, left: Any, right: Any) -> Any:
        def emit(_context: Any, builder: Any, _sig: Any, arguments: Any) -> Any:
            return builder.select(builder.fcmp_ordered(comparison, *arguments), *arguments)

        return FLOATS(left, right), emit

    return typed


larger = intrinsic(_chosen(">"))
smaller = intrinsic(_chosen("<"))


@intrinsic  # type: ignore[untyped-decorator]
def below(_typing: Any, values: Any, limit: Any, other: Any) -> Any:
    """Lanes less than ``limit``, ``other`` in the place of the rest."""

    def emit(_context: Any, builder: Any, _sig: Any, arguments: Any) -> Any:
        less = builder.fcmp_ordered("<", arguments[0], splat(builder, arguments[1]))
        return builder.select(less, arguments[0], splat(builder, arguments[2]))

    return FLOATS(values, types.float32, types.float32), emit


@intrinsic  # type: ignore[untyped-decorator]
def positive(_typing: Any, values: Any) -> Any:
    """1 where a lane is above 0, else 0."""

    def emit(_context: Any, builder: Any, _sig: Any, arguments: Any) -> Any:
        return builder.uitofp(builder.fcmp_ordered(">", arguments[0], constant(0.0)), VECTOR)

    return FLOATS(values), emit


@intrinsic  # type: ignore[untyped-decorator]
def reciprocal(_typing: Any, values: Any) -> Any:
    """1 over every lane."""

    def emit(_context: Any, builder: Any, _sig: Any, arguments: Any) -> Any:
        return builder.fdiv(constant(1.0), arguments[0])

    return FLOATS(values), emit


@intrinsic  # type: ignore[untyped-decorator]
def log_lanes(_typing: Any, values: Any) -> Any:
    """`models.kernels.fast_log` of every lane."""

    def emit(_context: Any, builder: Any, _sig: Any, arguments: Any) -> Any:
        bits = builder.bitcast(arguments[0], WORDS)
        exponent = builder.sitofp(builder.sub(builder.ashr(bits, every(23)), every(127)), VECTOR)
        mantissa = builder.or_(builder.and_(bits, every(0x7FFFFF)), every(0x3F800000))
        p = _polynomial(builder, _LOG, builder.bitcast(mantissa, VECTOR))
        return builder.fadd(builder.fmul(exponent, constant(0.6931471806), flags=FAST), p, flags=FAST)

    return FLOATS(values), emit


@intrinsic  # type: ignore[untyped-decorator]
def exp_lanes(_typing: Any, values: Any) -> Any:
    """Exp of every lane, none above 0, within 1e-5 of it (a polynomial on [0, 1))."""

    def emit(_context: Any, builder: Any, _sig: Any, arguments: Any) -> Any:
        least = constant(-80.0)
        y = builder.select(builder.fcmp_ordered(">", arguments[0], least), arguments[0], least)
        y = builder.fmul(y, constant(1.44269504), flags=FAST)
        whole = builder.call(function(builder, "llvm.floor", VECTOR, [VECTOR]), [y])
        part = builder.fsub(y, whole, flags=FAST)
        power = builder.shl(builder.add(builder.fptosi(whole, WORDS), every(127)), every(23))
        return builder.fmul(_polynomial(builder, _EXP, part), builder.bitcast(power, VECTOR), flags=FAST)

    return FLOATS(values), emit


@intrinsic  # type: ignore[untyped-decorator]
def sum_of(_typing: Any, values: Any) -> Any:
    """The sum of all lanes."""

    def emit(_context: Any, builder: Any, _sig: Any, arguments: Any) -> Any:
        add = function(builder, "llvm.vector.reduce.fadd", FLOAT, [FLOAT, VECTOR])
        return builder.call(add, [FLOAT(0.0), arguments[0]], fastmath=FAST)

    return types.float32(values), emit


@intrinsic  # type: ignore[untyped-decorator]
def no_less(_typing: Any, values: Any, value: Any) -> Any:
    """Bit i is set where lane i is ``value`` or more."""

    def emit(_context: Any, builder: Any, _sig: Any, arguments: Any) -> Any:
        return bits_of(builder, builder.fcmp_ordered(">=", arguments[0], splat(builder, arguments[1])))

    return types.int32(values, types.float32), emit


@intrinsic  # type: ignore[untyped-decorator]
def equal_to(_typing: Any, values: Any, value: Any) -> Any:
    """Bit i is set where lane i is ``value``."""

    def emit(_context: Any, builder: Any, _sig: Any, arguments: Any) -> Any:
        return bits_of(builder, builder.fcmp_ordered("==", arguments[0], splat(builder, arguments[1])))

    return types.int32(values, types.float32), emit


@intrinsic  # type: ignore[untyped-decorator]
def equal_in(_typing: Any, array: Any, row: Any, column: Any, value: Any) -> Any:
    """Bit i is set where element ``column + i`` of a row of an int32 array (R, C) is ``value``."""

    def emit(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        found = builder.load(pointer(context, builder, sig.args[0], arguments[0], arguments[1:3], WORDS), align=4)
        return bits_of(builder, builder.icmp_signed("==", found, splat(builder, arguments[3], WORDS)))

    return types.int32(array, types.intp, types.intp, types.int32), emit


@intrinsic  # type: ignore[untyped-decorator]
def lowest_bit(_typing: Any, bits: Any) -> Any:
    """Place of the lowest bit that is set; there must be one."""

    def emit(_context: Any, builder: Any, _sig: Any, arguments: Any) -> Any:
        return builder.zext(builder.cttz(arguments[0], ir.IntType(1)(1)), ir.IntType(64))

    return types.intp(types.int32), emit


@intrinsic  # type: ignore[untyped-decorator]
def highest(_typing: Any, values: Any) -> Any:
    """The largest lane."""

    def emit(_context: Any, builder: Any, _sig: Any, arguments: Any) -> Any:
        most = function(builder, "llvm.vector.reduce.fmax", FLOAT, [VECTOR])
        return builder.call(most, arguments, fastmath=("nnan", "nsz"))

    return types.float32(values), emit
