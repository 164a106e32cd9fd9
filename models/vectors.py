"""What the code of vectors is built with (`models.lanes`): their types in LLVM, constants, addresses of elements."""

from typing import Any, Final

from llvmlite import ir

LANES: Final = 16
FLOAT: Final = ir.FloatType()
WORD: Final = ir.IntType(32)
VECTOR: Final = ir.VectorType(FLOAT, LANES)
WORDS: Final = ir.VectorType(WORD, LANES)
FAST: Final = ("contract", "nsz", "arcp", "reassoc")


def splat(builder: Any, value: Any, vector: ir.VectorType = VECTOR) -> Any:
    """The same value in every lane."""
    first = builder.insert_element(ir.Constant(vector, ir.Undefined), value, WORD(0))
    mask = ir.Constant(ir.VectorType(WORD, vector.count), [0] * vector.count)
    return builder.shuffle_vector(first, ir.Constant(vector, ir.Undefined), mask)


def constant(number: float) -> ir.Constant:
    """The same number in every lane, known when compiled."""
    return ir.Constant(VECTOR, [ir.Constant(FLOAT, number)] * LANES)


def every(number: int) -> ir.Constant:
    """The same integer in every lane, known when compiled."""
    return ir.Constant(WORDS, [WORD(number)] * LANES)


def bits_of(builder: Any, truths: Any) -> Any:
    """Truths of all lanes as the bits of one word."""
    return builder.zext(builder.bitcast(truths, ir.IntType(LANES)), WORD)


def function(builder: Any, name: str, result: Any, arguments: list[Any]) -> Any:
    """LLVM's function of that name for vectors."""
    name = f"{name}.v{LANES}f32"
    return builder.module.globals.get(name) or ir.Function(builder.module, ir.FunctionType(result, arguments), name)


def pointer(context: Any, builder: Any, kind: Any, array: Any, places: list[Any], vector: Any) -> Any:
    """Address of an element of an array whose last dimension is contiguous."""
    view = context.make_array(kind)(context, builder, array)
    at = builder.ptrtoint(view.data, index_type(builder, view))
    for dimension, place in enumerate(places):
        stride = builder.extract_value(view.strides, dimension)
        at = builder.add(at, builder.mul(place, stride))
    return builder.inttoptr(at, vector.as_pointer())


def index_type(builder: Any, view: Any) -> Any:
    """The integer type that an array's strides have."""
    return builder.extract_value(view.strides, 0).type
