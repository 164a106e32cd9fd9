"""Recurrent steps for serving: one event after another, each row's arithmetic in one fixed order.

A matrix product over a batch would be read differently by the BLAS for each batch size, and several events of one user
would need one call per event. These kernels take the events as they come (a user may appear any number of times) and
give the same bits however a stream is cut into batches, which is what lets a restarted worker continue exactly.
Cost at H = 128 is that of the batched product: the recurrent weights (196 kB for a GRU) stay in the L2 cache.

After every step the state is rounded to the precision it is stored in (float16), so that a state kept in memory and one
restored from its record are the same.

Letters: E events, U users, H hidden width, V items, G gates x H (3H for the GRU, 4H for the LSTM).
Equations are those of torch.nn.GRU (Cho et al. 2014) and torch.nn.LSTM (Hochreiter & Schmidhuber 1997).
"""

import numba as nb
import numpy as np
from numpy.typing import NDArray

_HALF = np.float32(0.5)
_HALF_MAX = np.float32(65504.0)  # largest float16; an LSTM's cell can grow by 1 a step
_jit = nb.njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract"})


@_jit  # type: ignore[untyped-decorator]
def _tanh(x: np.float32) -> np.float32:
    """Rational minimax tanh on [-7.9, 7.9] (coefficients as in Eigen); within 4e-7 of the true value, vectorisable."""
    x = min(max(x, np.float32(-7.90531110763549805)), np.float32(7.90531110763549805))
    s = x * x
    p = np.float32(-2.76076847742355e-16) * s + np.float32(2.00018790482477e-13)
    p = p * s + np.float32(-8.60467152213735e-11)
    p = p * s + np.float32(5.12229709037114e-08)
    p = p * s + np.float32(1.48572235717979e-05)
    p = p * s + np.float32(6.37261928875436e-04)
    p = p * s + np.float32(4.89352455891786e-03)
    q = np.float32(1.19825839466702e-06) * s + np.float32(1.18534705686654e-04)
    q = q * s + np.float32(2.26843463243900e-03)
    q = q * s + np.float32(4.89352518554385e-03)
    return x * p / q


@_jit  # type: ignore[untyped-decorator]
def _to_half_precision(x: np.float32) -> np.float32:
    """The nearest float16 value, as a float32: 11 significant bits, or multiples of 2^-24 below 2^-14."""
    if -np.float32(6.103515625e-05) < x < np.float32(6.103515625e-05):
        return (x + np.float32(0.75)) - np.float32(0.75)
    bits = np.float32(x).view(np.uint32)
    bits += np.uint32(0xFFF) + ((bits >> np.uint32(13)) & np.uint32(1))
    return np.uint32(bits & np.uint32(0xFFFFE000)).view(np.float32)


@_jit  # type: ignore[untyped-decorator]
def _recurrent(h: NDArray[np.float32], weight: NDArray[np.float32], out: NDArray[np.float32]) -> None:
    """Add h (H,) @ weight (H, G) to out (G,), four rows of the weight at a time."""
    width, gates = weight.shape
    blocked = width // 4 * 4
    for k in range(0, blocked, 4):
        a, b, c, d = h[k], h[k + 1], h[k + 2], h[k + 3]
        w0, w1, w2, w3 = weight[k], weight[k + 1], weight[k + 2], weight[k + 3]
        for j in range(gates):
            out[j] += a * w0[j] + b * w1[j] + c * w2[j] + d * w3[j]
    for k in range(blocked, width):
        for j in range(gates):
            out[j] += h[k] * weight[k, j]


@_jit  # type: ignore[untyped-decorator]
def gru_steps(
    state: NDArray[np.float32],  # (U, H) in and out
    user: NDArray[np.int32],  # (E,) index into state
    rows: NDArray[np.int32],  # (E,)
    kinds: NDArray[np.uint8],  # (E,)
    gaps: NDArray[np.float32],  # (E,) the model's gap feature
    item_gates: NDArray[np.float32],  # (V, 3H) W_i E + b_i (+ b_h for r and z)
    kind_gates: NDArray[np.float32],  # (3, 3H)
    gap_gates: NDArray[np.float32],  # (3H,)
    recurrent: NDArray[np.float32],  # (H, 3H)
    recurrent_bias: NDArray[np.float32],  # (H,) b_hn
    after: NDArray[np.float32],  # (E, H) out: hidden vector after each event
) -> None:
    """r, z = sigmoid(.), n = tanh(W_in x + b_in + r (W_hn h + b_hn)), h' = n + z (h - n)."""
    width = state.shape[1]
    two = 2 * width
    gate = np.empty(two, np.float32)
    recurred = np.empty(3 * width, np.float32)
    for e in range(user.shape[0]):
        h = state[user[e]]
        x, t, g = item_gates[rows[e]], kind_gates[kinds[e]], gaps[e]
        recurred[:two] = 0
        recurred[two:] = recurrent_bias
        _recurrent(h, recurrent, recurred)
        for j in range(two):
            gate[j] = _HALF + _HALF * _tanh(_HALF * (x[j] + t[j] + g * gap_gates[j] + recurred[j]))
        out = after[e]
        for j in range(width):
            i = two + j
            n = _tanh(x[i] + t[i] + g * gap_gates[i] + gate[j] * recurred[i])
            out[j] = n + gate[width + j] * (h[j] - n)
        for j in range(width):
            value = _to_half_precision(out[j])
            out[j] = value
            h[j] = value


@_jit  # type: ignore[untyped-decorator]
def lstm_steps(
    state: NDArray[np.float32],  # (U, 2H) in and out: h then c
    user: NDArray[np.int32],
    rows: NDArray[np.int32],
    kinds: NDArray[np.uint8],
    gaps: NDArray[np.float32],
    item_gates: NDArray[np.float32],  # (V, 4H) W_i E + b_i + b_h
    kind_gates: NDArray[np.float32],  # (3, 4H)
    gap_gates: NDArray[np.float32],  # (4H,)
    recurrent: NDArray[np.float32],  # (H, 4H)
    after: NDArray[np.float32],  # (E, H) out
) -> None:
    """i, f, o = sigmoid(.), g = tanh(.), c' = f c + i g, h' = o tanh(c')."""
    width = after.shape[1]
    gate = np.empty(4 * width, np.float32)
    for e in range(user.shape[0]):
        s = state[user[e]]
        h, c = s[:width], s[width:]
        x, t, g = item_gates[rows[e]], kind_gates[kinds[e]], gaps[e]
        for j in range(4 * width):
            gate[j] = x[j] + t[j] + g * gap_gates[j]
        _recurrent(h, recurrent, gate)
        out = after[e]
        for j in range(width):
            i = _HALF + _HALF * _tanh(_HALF * gate[j])
            f = _HALF + _HALF * _tanh(_HALF * gate[width + j])
            o = _HALF + _HALF * _tanh(_HALF * gate[3 * width + j])
            cell = f * c[j] + i * _tanh(gate[2 * width + j])
            c[j] = cell
            out[j] = o * _tanh(cell)
        for j in range(width):
            c[j] = _to_half_precision(min(max(c[j], -_HALF_MAX), _HALF_MAX))
            value = _to_half_precision(out[j])
            out[j] = value
            h[j] = value
