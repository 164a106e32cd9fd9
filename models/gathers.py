"""Reading elements that lie scattered into vectors (`models.lanes`)."""

from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from models.lanes import FLOATS
from models.vectors import FLOAT, LANES, VECTOR, WORD, WORDS, constant, every, index_type, pointer


def _zipped(builder: Any, one: Any, other: Any, start: int, count: int) -> Any:
    """Elements ``start`` to ``start + count`` of two vectors in turn."""
    length = one.type.count
    places = [place for i in range(start, start + count) for place in (i, length + i)]
    return builder.shuffle_vector(one, other, ir.Constant(ir.VectorType(WORD, 2 * count), places))


@intrinsic  # type: ignore[untyped-decorator]
def columns_of(_typing: Any, array: Any, rows: Any, at: Any) -> Any:
    """Rows ``rows[at]`` to ``rows[at + 15]`` of an array (R, 8), as its 8 columns.

    Reads whole rows and transposes them in registers: 0.09 us for 64 rows, where loops over the columns took 0.3.
    """

    def emit(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        view = context.make_array(sig.args[0])(context, builder, arguments[0])
        index = index_type(builder, view)
        numbers = pointer(context, builder, sig.args[1], arguments[1], arguments[2:], WORD)
        half = ir.VectorType(FLOAT, LANES // 2)
        found = []
        for lane in range(LANES):
            row = builder.zext(builder.load(builder.gep(numbers, [WORD(lane)])), index)
            place = pointer(context, builder, sig.args[0], arguments[0], [row], half)
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

    return types.containers.UniTuple(FLOATS, 8)(array, rows, types.intp), emit


@intrinsic  # type: ignore[untyped-decorator]
def picked(_typing: Any, array: Any, row: Any, place_of: Any, items: Any, at: Any) -> Any:
    """Elements ``place_of[items[at]]`` to ``place_of[items[at + 15]]`` of a row of (R, C), and which are there.

    A place of 0 stands for none: such lanes are 0 in both.
    """

    def emit(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        def address(array: int, places: list[Any], kind: Any) -> Any:
            return pointer(context, builder, sig.args[array], arguments[array], places, kind)

        index = arguments[4].type
        numbers = address(3, [arguments[4]], WORD)
        values, places = ir.Constant(VECTOR, ir.Undefined), ir.Constant(WORDS, ir.Undefined)
        for lane in range(LANES):
            item = builder.zext(builder.load(builder.gep(numbers, [WORD(lane)])), index)
            place = builder.load(address(2, [item], WORD))
            value = builder.load(address(0, [arguments[1], builder.zext(place, index)], FLOAT))
            places = builder.insert_element(places, place, WORD(lane))
            values = builder.insert_element(values, value, WORD(lane))
        there = builder.icmp_signed(">", places, every(0))
        found = builder.select(there, values, constant(0.0))
        return context.make_tuple(builder, sig.return_type, (found, builder.uitofp(there, VECTOR)))

    return types.containers.UniTuple(FLOATS, 2)(array, types.intp, place_of, items, types.intp), emit
