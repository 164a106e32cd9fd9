from itertools import pairwise

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import nn

from models.step import _tanh, _to_half_precision, gru_steps, lstm_steps

FLOAT16_MAX = 65504.0


def half(values):
    """What numpy's own conversion to float16 makes of float32 values, as float32."""
    return np.asarray(values, np.float32).astype(np.float16).astype(np.float32)


def ours(values):
    return np.array([_to_half_precision(np.float32(value)) for value in np.asarray(values, np.float32)], np.float32)


def test_every_float16_value_stays_itself():
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    finite = every[np.isfinite(every)].astype(np.float32)
    assert np.array_equal(ours(finite), finite)


def test_ties_between_neighbouring_float16_values_go_to_the_even_one_and_their_neighbours_to_the_nearer():
    positive = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float64)  # 0 ... 65504, ascending
    ties = ((positive[:-1] + positive[1:]) / 2).astype(np.float32)  # exact: float32 has 13 bits more
    for values in (ties, np.nextafter(ties, np.float32(0)), np.nextafter(ties, np.float32(1e6))):
        assert np.array_equal(ours(values), half(values))
        assert np.array_equal(ours(-values), half(-values))


@given(st.lists(st.floats(-FLOAT16_MAX, FLOAT16_MAX, width=32), min_size=1, max_size=50))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_rounds_like_numpy(values):
    assert np.array_equal(ours(values), half(values))


def test_values_beyond_float16_are_clamped_by_the_lstm_before_they_become_infinite():
    state = np.array([[0.0, 65504.0]], np.float32)  # h, c of one unit
    open_gates = np.zeros((1, 4), np.float32)
    open_gates[0] = 30.0, 30.0, 30.0, 30.0  # i = f = o = 1, g = 1: c grows by 1 a step
    after = np.empty((50, 1), np.float32)
    zeros = np.zeros(50, np.int32)
    lstm_steps(
        state, zeros, zeros, zeros.astype(np.uint8), zeros.astype(np.float32), open_gates, np.zeros((1, 4), np.float32),
        np.zeros(4, np.float32), np.zeros((1, 4), np.float32), after,
    )  # fmt: skip
    assert state[0, 1] == FLOAT16_MAX
    assert np.isfinite(state.astype(np.float16)).all()


def test_tanh_is_within_4e_7():
    x = np.concatenate([np.linspace(-12, 12, 20_001), np.logspace(-20, 2, 500), [0.0]]).astype(np.float32)
    got = np.array([_tanh(value) for value in x])
    assert np.abs(got - np.tanh(x.astype(np.float64))).max() < 4e-7


def cell_of(cell, hidden, width=6, seed=3):
    torch.manual_seed(seed)
    layer = (nn.GRU if cell == "gru" else nn.LSTM)(width, hidden, batch_first=True).double()
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.5)
    return layer


def kernel_of(cell, layer, inputs):
    """Run the kernel on input vectors (N, D): each stands as its own "item row"."""
    weights = {name: value.detach().numpy().astype(np.float32) for name, value in layer.named_parameters()}
    hidden = layer.hidden_size
    bias = weights["bias_ih_l0"].copy()
    if cell == "gru":
        bias[: 2 * hidden] += weights["bias_hh_l0"][: 2 * hidden]
    else:
        bias += weights["bias_hh_l0"]
    gates = (inputs.astype(np.float32) @ weights["weight_ih_l0"].T + bias).astype(np.float32)
    recurrent = np.ascontiguousarray(weights["weight_hh_l0"].T)
    none = np.zeros(gates.shape[1], np.float32)

    def steps(state, user, rows):
        after = np.empty((len(user), hidden), np.float32)
        shared = (
            state, np.asarray(user, np.int32), np.asarray(rows, np.int32), np.zeros(len(user), np.uint8),
            np.zeros(len(user), np.float32), gates, none[None, :], none, recurrent,
        )  # fmt: skip
        if cell == "gru":
            gru_steps(*shared, weights["bias_hh_l0"][2 * hidden :].copy(), after)
        else:
            lstm_steps(*shared, after)
        return after

    return steps


def torch_run(cell, layer, inputs, state):
    """torch over (T, D) from a state (S,): outputs (T, H) and the state after."""
    x = torch.from_numpy(inputs.astype(np.float64))[None]
    start = torch.from_numpy(state.astype(np.float64))[None, None]
    with torch.no_grad():
        if cell == "gru":
            out, end = layer(x, start)
            return out[0].numpy(), end[0, 0].numpy()
        h, c = start.chunk(2, dim=2)
        out, (h, c) = layer(x, (h.contiguous(), c.contiguous()))
        return out[0].numpy(), torch.cat([h, c], dim=2)[0, 0].numpy()


CELLS = [
    ("gru", 1),
    ("gru", 7),
    ("gru", 8),
    ("gru", 33),
    ("gru", 128),
    ("lstm", 1),
    ("lstm", 5),
    ("lstm", 16),
    ("lstm", 66),
]


@pytest.mark.parametrize(("cell", "hidden"), CELLS)
def test_one_step_is_torchs_step_rounded_to_float16(cell, hidden):
    layer, rng = cell_of(cell, hidden), np.random.default_rng(1)
    inputs = rng.normal(size=(40, 6))
    steps = kernel_of(cell, layer, inputs)
    size = hidden * (2 if cell == "lstm" else 1)
    for row in range(len(inputs)):
        start = half(rng.uniform(-1, 1, size))
        state = start[None, :].copy()
        after = steps(state, [0], [row])
        _, expected = torch_run(cell, layer, inputs[row : row + 1], start)
        spacing = np.spacing(np.abs(expected).astype(np.float16)).astype(np.float64)
        assert (np.abs(state[0] - expected) <= spacing / 2 + 3e-6).all()
        assert np.array_equal(after[0], state[0, :hidden])
        assert np.array_equal(half(state), state)


@pytest.mark.parametrize(("cell", "hidden"), CELLS)
def test_whole_sequences_follow_torch_within_float16_rounding(cell, hidden):
    """Every step rounds to 11 bits: 200 steps stay within 1e-3 of the unrounded sequence (contracting cells)."""
    layer, rng = cell_of(cell, hidden), np.random.default_rng(2)
    with torch.no_grad():
        layer.weight_hh_l0.mul_(min(1.0, 1.0 / hidden**0.5))  # as trained cells are: an expanding one doubles any error
    inputs = rng.normal(size=(200, 6))
    steps = kernel_of(cell, layer, inputs)
    size = hidden * (2 if cell == "lstm" else 1)
    state = np.zeros((1, size), np.float32)
    after = steps(state, np.zeros(200), np.arange(200))
    outputs, end = torch_run(cell, layer, inputs, np.zeros(size))
    assert np.abs(after - outputs).max() < 1e-3
    assert np.abs(state[0] - end).max() < 1e-3 * max(1.0, np.abs(end).max())


@pytest.mark.parametrize(("cell", "hidden"), [("gru", 7), ("gru", 32), ("lstm", 7), ("lstm", 16)])
@given(data=st.data())
@settings(max_examples=25, deadline=None, derandomize=True)
def test_however_the_events_are_cut_into_batches_the_bits_are_the_same(cell, hidden, data):
    layer, rng = cell_of(cell, hidden), np.random.default_rng(4)
    steps = kernel_of(cell, layer, rng.normal(size=(10, 6)))
    n = data.draw(st.integers(1, 40))
    user = np.array(data.draw(st.lists(st.integers(0, 3), min_size=n, max_size=n)), np.int32)
    rows = np.array(data.draw(st.lists(st.integers(0, 9), min_size=n, max_size=n)), np.int32)
    cuts = sorted(data.draw(st.sets(st.integers(1, n), max_size=6)) | {0, n})
    size = hidden * (2 if cell == "lstm" else 1)
    whole = np.zeros((4, size), np.float32)
    outputs = steps(whole, user, rows)

    pieces = np.zeros((4, size), np.float32)
    collected = []
    for start, stop in pairwise(cuts):
        present = np.unique(user[start:stop])  # as the stream does: only the batch's users, gathered and put back
        state = pieces[present].astype(np.float16).astype(np.float32)
        collected.append(steps(state, np.searchsorted(present, user[start:stop]), rows[start:stop]))
        pieces[present] = state
    assert np.array_equal(whole.view(np.uint32), pieces.view(np.uint32))
    assert np.array_equal(np.concatenate(collected).view(np.uint32), outputs.view(np.uint32))
