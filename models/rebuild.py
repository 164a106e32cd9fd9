"""Hidden vectors of many users made from their recent events at once, one wave of events after the other.

Where a user's events come one by one, a step reads all recurrent weights (196 kB for a GRU of 128) for one user, out of
the L2 cache: 3 to 6 us. The k-th events of 64 users are one matrix product: 1.5 us each with everything around it. The
BLAS sums in another order for another number of users, so a vector made here may differ from one made step by step in
the last bit of its float16: good enough for a vector that depends on when it was made anyway.

Letters: U users, T events of the longest past, S state width, H hidden width, V items, G gates x H.
Equations as in `models.step`.
"""

import numpy as np
from numpy.typing import NDArray

from models.serving import ServingModel
from models.step import _HALF, _HALF_MAX, _jit, _tanh, _to_half_precision


def replay(
    model: ServingModel,
    rows: NDArray[np.int32],
    kinds: NDArray[np.uint8],
    gaps: NDArray[np.float32],
    lengths: NDArray[np.int64],
) -> NDArray[np.float32]:
    """Vectors (U, S), float16 values as float32, of users who begin at zero.

    Args:
        model: The version that makes them.
        rows: (U, T) rows of the users' events, oldest first, left-aligned.
        kinds: (U, T)
        gaps: (U, T) from `models.serving.gap_feature`.
        lengths: (U,) events of each user.
    """
    order = np.argsort(-lengths, kind="stable")  # whoever has a k-th event stands in front
    rows, kinds, gaps = rows[order], kinds[order], gaps[order]
    state = np.zeros((len(order), model.state_size), np.float32)
    hidden = model.hidden
    shared = model.item_gates, model.kind_gates, model.gap_gates
    for wave in range(int(lengths.max(initial=0))):
        count = int((lengths > wave).sum())
        recurred = state[:count, :hidden] @ model.recurrent  # (count, G)
        events = rows[:count, wave], kinds[:count, wave], gaps[:count, wave]
        if model.cell == "gru":
            _gru_wave(state, recurred, *events, *shared, model.recurrent_bias)
        else:
            _lstm_wave(state, recurred, *events, *shared)
    made = np.empty_like(state)
    made[order] = state
    return made


@_jit  # type: ignore[untyped-decorator]
def _gru_wave(
    state: NDArray[np.float32],  # (U, H) in and out; only as many as there are events
    recurred: NDArray[np.float32],  # (E, 3H)
    rows: NDArray[np.int32],  # (E,)
    kinds: NDArray[np.uint8],  # (E,)
    gaps: NDArray[np.float32],  # (E,)
    item_gates: NDArray[np.float32],  # (V, 3H)
    kind_gates: NDArray[np.float32],  # (3, 3H)
    gap_gates: NDArray[np.float32],  # (3H,)
    recurrent_bias: NDArray[np.float32],  # (H,)
) -> None:
    width = state.shape[1]
    two = 2 * width
    gate, out = np.empty(two, np.float32), np.empty(width, np.float32)
    for e in range(rows.shape[0]):
        h, x, t, g, r = state[e], item_gates[rows[e]], kind_gates[kinds[e]], gaps[e], recurred[e]
        for j in range(two):
            gate[j] = _HALF + _HALF * _tanh(_HALF * (x[j] + t[j] + g * gap_gates[j] + r[j]))
        for j in range(width):
            i = two + j
            n = _tanh(x[i] + t[i] + g * gap_gates[i] + gate[j] * (r[i] + recurrent_bias[j]))
            out[j] = n + gate[width + j] * (h[j] - n)
        for j in range(width):
            h[j] = _to_half_precision(out[j])


@_jit  # type: ignore[untyped-decorator]
def _lstm_wave(
    state: NDArray[np.float32],  # (U, 2H) in and out: h then c
    recurred: NDArray[np.float32],  # (E, 4H)
    rows: NDArray[np.int32],
    kinds: NDArray[np.uint8],
    gaps: NDArray[np.float32],
    item_gates: NDArray[np.float32],  # (V, 4H)
    kind_gates: NDArray[np.float32],  # (3, 4H)
    gap_gates: NDArray[np.float32],  # (4H,)
) -> None:
    width = state.shape[1] // 2
    gate, out = np.empty(4 * width, np.float32), np.empty(width, np.float32)
    for e in range(rows.shape[0]):
        x, t, g, r = item_gates[rows[e]], kind_gates[kinds[e]], gaps[e], recurred[e]
        h, c = state[e, :width], state[e, width:]
        for j in range(4 * width):
            gate[j] = x[j] + t[j] + g * gap_gates[j] + r[j]
        for j in range(width):
            i = _HALF + _HALF * _tanh(_HALF * gate[j])
            f = _HALF + _HALF * _tanh(_HALF * gate[width + j])
            o = _HALF + _HALF * _tanh(_HALF * gate[3 * width + j])
            cell = f * c[j] + i * _tanh(gate[2 * width + j])
            c[j] = cell
            out[j] = o * _tanh(cell)
        for j in range(width):
            c[j] = _to_half_precision(min(max(c[j], -_HALF_MAX), _HALF_MAX))
            h[j] = _to_half_precision(out[j])
