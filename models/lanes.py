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

LANES: Final = 16
_FLOAT: Final = ir.FloatType()
_WORD: Final = ir.IntType(32)
_VECTOR: Final = ir.VectorType(_FLOAT, LANES)
_WORDS: Final = ir.VectorType(_WORD, LANES)
_FAST: Final = ("contract", "nsz", "arcp", "reassoc")
_LOG: Final = (-0.05437093, 0.43393244, -1.44059216, 2.79283652, -1.73172644)  # as in `models.kernels.fast_log`
_EXP: Final = (0.01367031, 0.05174500, 0.24160436, 0.69297292, 1.00000349)


class Lanes(types.Type):
    """16 float32 in registers, as numba types them."""

    def __init__(self) -> None:
        super().__init__(name="float32x16")


_LANES: Final = Lanes()


@register_model(Lanes)
class _LanesModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, _VECTOR)


def _splat(builder: Any, value: Any, vector: ir.VectorType = _VECTOR) -> Any:
    first = builder.insert_element(ir.Constant(vector, ir.Undefined), value, _WORD(0))
    mask = ir.Constant(ir.VectorType(_WORD, vector.count), [0] * vector.count)
    return builder.shuffle_vector(first, ir.Constant(vector, ir.Undefined), mask)


def _of(number: float) -> ir.Constant:
    return ir.Constant(_VECTOR, [ir.Constant(_FLOAT, number)] * LANES)


def _every(number: int) -> ir.Constant:
    return ir.Constant(_WORDS, [_WORD(number)] * LANES)


def _bits(builder: Any, truths: Any) -> Any:
    return builder.zext(builder.bitcast(truths, ir.IntType(LANES)), _WORD)


def _function(builder: Any, name: str, result: Any, arguments: list[Any]) -> Any:
    name = f"{name}.v{LANES}f32"
    return builder.module.globals.get(name) or ir.Function(builder.module, ir.FunctionType(result, arguments), name)


def _polynomial(builder: Any, coefficients: tuple[float, ...], x: Any) -> Any:
    p = _of(coefficients[0])
    for coefficient in coefficients[1:]:
        p = builder.fadd(builder.fmul(p, x, flags=_FAST), _of(coefficient), flags=_FAST)
    return p


def _pointer(context: Any, builder: Any, kind: Any, array: Any, places: list[Any], vector: Any) -> Any:
    """Address of an element of an array whose last dimension is contiguous."""
    view = context.make_array(kind)(context, builder, array)
    at = builder.ptrtoint(view.data, _index(builder, view))
    for dimension, place in enumerate(places):
        stride = builder.extract_value(view.strides, dimension)
        at = builder.add(at, builder.mul(place, stride))
    return builder.inttoptr(at, vector.as_pointer())


def _zipped(builder: Any, one: Any, other: Any, start: int, count: int) -> Any:
    """Elements ``start`` to ``start + count`` of two vectors in turn."""
    length = one.type.count
    places = [place for i in range(start, start + count) for place in (i, length + i)]
    return builder.shuffle_vector(one, other, ir.Constant(ir.VectorType(_WORD, 2 * count), places))


def _index(builder: Any, view: Any) -> Any:
    return builder.extract_value(view.strides, 0).type


def _binary(operation: Any, instruction: str) -> None:
    @infer_global(operation)
    class _Typed(ConcreteTemplate):  # type: ignore[misc]
        cases = (
            signature(_LANES, _LANES, _LANES),
            signature(_LANES, types.float32, _LANES),
            signature(_LANES, _LANES, types.float32),
        )

    def lower(_context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        sides = [
            value if kind == _LANES else _splat(builder, value) for kind, value in zip(sig.args, arguments, strict=True)
        ]
        return getattr(builder, instruction)(*sides, flags=_FAST)

    for left, right in ((_LANES, _LANES), (types.float32, _LANES), (_LANES, types.float32)):
        lower_builtin(operation, left, right)(lower)


_binary(operator.add, "fadd")
_binary(operator.iadd, "fadd")
_binary(operator.sub, "fsub")
_binary(operator.mul, "fmul")


@intrinsic  # type: ignore[untyped-decorator]
def spread(_typing: Any, value: Any) -> Any:
    """The same number in every lane."""

    def emit(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        return _splat(builder, context.cast(builder, arguments[0], sig.args[0], types.float32))

    return _LANES(value), emit


def _loaded(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
    return builder.load(_pointer(context, builder, sig.args[0], arguments[0], arguments[1:], _VECTOR), align=4)


def _stored(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
    place = _pointer(context, builder, sig.args[0], arguments[0], arguments[1:-1], _VECTOR)
    builder.store(arguments[-1], place, align=4)
    return context.get_dummy_value()


@intrinsic  # type: ignore[untyped-decorator]
def lanes(_typing: Any, array: Any, row: Any, column: Any) -> Any:
    """Elements ``column`` to ``column + 15`` of a row of an array (R, C)."""
    return _LANES(array, types.intp, types.intp), _loaded


@intrinsic  # type: ignore[untyped-decorator]
def lanes_of(_typing: Any, array: Any, column: Any) -> Any:
    """Elements ``column`` to ``column + 15`` of an array (C,)."""
    return _LANES(array, types.intp), _loaded


@intrinsic  # type: ignore[untyped-decorator]
def put(_typing: Any, array: Any, row: Any, column: Any, values: Any) -> Any:
    """Write elements ``column`` to ``column + 15`` of a row of an array (R, C)."""
    return types.void(array, types.intp, types.intp, values), _stored


@intrinsic  # type: ignore[untyped-decorator]
def put_in(_typing: Any, array: Any, column: Any, values: Any) -> Any:
    """Write elements ``column`` to ``column + 15`` of an array (C,)."""
    return types.void(array, types.intp, values), _stored


@intrinsic  # type: ignore[untyped-decorator]
def columns_of(_typing: Any, array: Any, rows: Any, at: Any) -> Any:
    """Rows ``rows[at]`` to ``rows[at + 15]`` of an array (R, 8), as its 8 columns.

    Reads whole rows and transposes them in registers: 0.09 us for 64 rows, where loops over the columns took 0.3.
    """

    def emit(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        view = context.make_array(sig.args[0])(context, builder, arguments[0])
        index = _index(builder, view)
        numbers = _pointer(context, builder, sig.args[1], arguments[1], arguments[2:], _WORD)
        half = ir.VectorType(_FLOAT, LANES // 2)
        found = []
        for lane in range(LANES):
            row = builder.zext(builder.load(builder.gep(numbers, [_WORD(lane)])), index)
            place = _pointer(context, builder, sig.args[0], arguments[0], [row], half)
            found.append(builder.load(place, align=4))
        # Rows i and i + 8 zipped, then what came of i and i + 4, and so on: each time half as many columns in a vector.
        groups = [[_zipped(builder, found[i], found[i + 8], 0, 8)] for i in range(8)]
        while len(groups) > 1:
            further = len(groups) // 2
            groups = [
                [
                    _zipped(builder, one, other, start, LANES // 2)
                    for one, other in zip(groups[i], groups[i + further], strict=True)
                    for start in (0, LANES // 2)
                ]
                for i in range(further)
            ]
        return context.make_tuple(builder, sig.return_type, groups[0])

    return types.containers.UniTuple(_LANES, 8)(array, rows, types.intp), emit


@intrinsic  # type: ignore[untyped-decorator]
def picked(_typing: Any, array: Any, row: Any, place_of: Any, items: Any, at: Any) -> Any:
    """Elements ``place_of[items[at]]`` to ``place_of[items[at + 15]]`` of a row of (R, C), and which are there.

    A place of 0 stands for none: such lanes are 0 in both.
    """

    def emit(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        def pointer(array: int, places: list[Any], kind: Any) -> Any:
            return _pointer(context, builder, sig.args[array], arguments[array], places, kind)

        index = arguments[4].type
        numbers = pointer(3, [arguments[4]], _WORD)
        values, places = ir.Constant(_VECTOR, ir.Undefined), ir.Constant(_WORDS, ir.Undefined)
        for lane in range(LANES):
            item = builder.zext(builder.load(builder.gep(numbers, [_WORD(lane)])), index)
            place = builder.load(pointer(2, [item], _WORD))
            value = builder.load(pointer(0, [arguments[1], builder.zext(place, index)], _FLOAT))
            places = builder.insert_element(places, place, _WORD(lane))
            values = builder.insert_element(values, value, _WORD(lane))
        there = builder.icmp_signed(">", places, _every(0))
        found = builder.select(there, values, _of(0.0))
        return context.make_tuple(builder, sig.return_type, (found, builder.uitofp(there, _VECTOR)))

    return types.containers.UniTuple(_LANES, 2)(array, types.intp, place_of, items, types.intp), emit


def _chosen(comparison: str) -> Any:
    def typed(_typing: Any, left: Any, right: Any) -> Any:
        def emit(_context: Any, builder: Any, _sig: Any, arguments: Any) -> Any:
            return builder.select(builder.fcmp_ordered(comparison, *arguments), *arguments)

        return _LANES(left, right), emit

    return typed


larger = intrinsic(_chosen(">"))
smaller = intrinsic(_chosen("<"))


@intrinsic  # type: ignore[untyped-decorator]
def below(_typing: Any, values: Any, limit: Any, other: Any) -> Any:
    """Lanes less than ``limit``, ``other`` in the place of the rest."""

    def emit(_context: Any, builder: Any, _sig: Any, arguments: Any) -> Any:
        less = builder.fcmp_ordered("<", arguments[0], _splat(builder, arguments[1]))
        return builder.select(less, arguments[0], _splat(builder, arguments[2]))

    return _LANES(values, types.float32, types.float32), emit


@intrinsic  # type: ignore[untyped-decorator]
def positive(_typing: Any, values: Any) -> Any:
    """1 where a lane is above 0, else 0."""

    def emit(_context: Any, builder: Any, _sig: Any, arguments: Any) -> Any:
        return builder.uitofp(builder.fcmp_ordered(">", arguments[0], _of(0.0)), _VECTOR)

    return _LANES(values), emit


@intrinsic  # type: ignore[untyped-decorator]
def reciprocal(_typing: Any, values: Any) -> Any:
    """1 over every lane."""

    def emit(_context: Any, builder: Any, _sig: Any, arguments: Any) -> Any:
        return builder.fdiv(_of(1.0), arguments[0])

    return _LANES(values), emit


@intrinsic  # type: ignore[untyped-decorator]
def log_lanes(_typing: Any, values: Any) -> Any:
    """`models.kernels.fast_log` of every lane."""

    def emit(_context: Any, builder: Any, _sig: Any, arguments: Any) -> Any:
        bits = builder.bitcast(arguments[0], _WORDS)
        exponent = builder.sitofp(builder.sub(builder.ashr(bits, _every(23)), _every(127)), _VECTOR)
        mantissa = builder.or_(builder.and_(bits, _every(0x7FFFFF)), _every(0x3F800000))
        p = _polynomial(builder, _LOG, builder.bitcast(mantissa, _VECTOR))
        return builder.fadd(builder.fmul(exponent, _of(0.6931471806), flags=_FAST), p, flags=_FAST)

    return _LANES(values), emit


@intrinsic  # type: ignore[untyped-decorator]
def exp_lanes(_typing: Any, values: Any) -> Any:
    """Exp of every lane, none above 0, within 1e-5 of it (a polynomial on [0, 1))."""

    def emit(_context: Any, builder: Any, _sig: Any, arguments: Any) -> Any:
        least = _of(-80.0)
        y = builder.select(builder.fcmp_ordered(">", arguments[0], least), arguments[0], least)
        y = builder.fmul(y, _of(1.44269504), flags=_FAST)
        whole = builder.call(_function(builder, "llvm.floor", _VECTOR, [_VECTOR]), [y])
        part = builder.fsub(y, whole, flags=_FAST)
        power = builder.shl(builder.add(builder.fptosi(whole, _WORDS), _every(127)), _every(23))
        return builder.fmul(_polynomial(builder, _EXP, part), builder.bitcast(power, _VECTOR), flags=_FAST)

    return _LANES(values), emit


@intrinsic  # type: ignore[untyped-decorator]
def sum_of(_typing: Any, values: Any) -> Any:
    """The sum of all lanes."""

    def emit(_context: Any, builder: Any, _sig: Any, arguments: Any) -> Any:
        add = _function(builder, "llvm.vector.reduce.fadd", _FLOAT, [_FLOAT, _VECTOR])
        return builder.call(add, [_FLOAT(0.0), arguments[0]], fastmath=_FAST)

    return types.float32(values), emit


@intrinsic  # type: ignore[untyped-decorator]
def no_less(_typing: Any, values: Any, value: Any) -> Any:
    """Bit i is set where lane i is ``value`` or more."""

    def emit(_context: Any, builder: Any, _sig: Any, arguments: Any) -> Any:
        return _bits(builder, builder.fcmp_ordered(">=", arguments[0], _splat(builder, arguments[1])))

    return types.int32(values, types.float32), emit


@intrinsic  # type: ignore[untyped-decorator]
def equal_to(_typing: Any, values: Any, value: Any) -> Any:
    """Bit i is set where lane i is ``value``."""

    def emit(_context: Any, builder: Any, _sig: Any, arguments: Any) -> Any:
        return _bits(builder, builder.fcmp_ordered("==", arguments[0], _splat(builder, arguments[1])))

    return types.int32(values, types.float32), emit


@intrinsic  # type: ignore[untyped-decorator]
def equal_in(_typing: Any, array: Any, row: Any, column: Any, value: Any) -> Any:
    """Bit i is set where element ``column + i`` of a row of an int32 array (R, C) is ``value``."""

    def emit(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        found = builder.load(_pointer(context, builder, sig.args[0], arguments[0], arguments[1:3], _WORDS), align=4)
        return _bits(builder, builder.icmp_signed("==", found, _splat(builder, arguments[3], _WORDS)))

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
        most = _function(builder, "llvm.vector.reduce.fmax", _FLOAT, [_VECTOR])
        return builder.call(most, arguments, fastmath=("nnan", "nsz"))

    return types.float32(values), emit
