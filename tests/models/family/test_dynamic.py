import pytest
import torch
from torch import nn

from models.family.compression import CELLS, compress
from models.family.dynamic import Int8Cell, Int8Linear
from tests.models.family.walks import windows

LAYERS = {"gru": nn.GRU, "lstm": nn.LSTM, "rnn": nn.RNN}
B, T, D, H = 5, 7, 12, 16


def made(name):
    torch.manual_seed(0)
    layer = LAYERS[name](D, H, batch_first=True)
    start = torch.randn(1, B, H)
    return layer, torch.randn(B, T, D), (start, torch.randn(1, B, H)) if name == "lstm" else start


@torch.no_grad()
def snapped(layer):
    """The layer with its weights on the 8-bit grid, and one that computes in 8 bits: only inputs differ then."""
    for weight in (layer.weight_ih_l0, layer.weight_hh_l0):
        scale = weight.abs().amax(1, keepdim=True) / 127
        weight.copy_((weight / scale).round() * scale)
    return Int8Cell(layer)


@pytest.mark.parametrize("name", LAYERS)
@torch.no_grad()
def test_a_layer_in_8_bits_follows_torchs(name):
    layer, inputs, start = made(name)
    outputs, end = layer(inputs, start)
    ours, our_end = snapped(layer)(inputs, start)
    assert ours.shape == outputs.shape
    torch.testing.assert_close(ours, outputs, atol=0.03, rtol=0)
    for mine, theirs in zip(our_end if name == "lstm" else [our_end], end if name == "lstm" else [end], strict=True):
        assert mine.shape == theirs.shape
        torch.testing.assert_close(mine, theirs, atol=0.05, rtol=0)


@pytest.mark.parametrize("name", LAYERS)
@torch.no_grad()
def test_who_else_is_in_the_batch_changes_no_bit(name):
    layer, inputs, start = made(name)
    cell = Int8Cell(layer)
    outputs, _ = cell(inputs, start)
    loud = inputs.clone()
    loud[1:] *= 1000  # one scale for all rows would round the first user's inputs away
    alone, _ = cell(loud[:1], tuple(part[:, :1] for part in start) if name == "lstm" else start[:, :1])
    assert torch.equal(alone[0], outputs[0])
    assert torch.equal(cell(loud, start)[0][0], outputs[0])


@torch.no_grad()
def test_products_are_exact_where_nothing_is_rounded():
    weight = torch.tensor([[127.0, -3.0], [5.0, 127.0]])
    x = torch.tensor([[[127.0, 1.0]], [[-127.0, 64.0]]])
    bias = torch.tensor([1.0, -1.0])
    assert torch.equal(Int8Linear(weight, bias)(x), x @ weight.T + bias)


@torch.no_grad()
def test_a_row_of_zeros_is_the_bias():
    linear = Int8Linear(torch.randn(3, 4), torch.tensor([1.0, 2.0, 3.0]))
    assert torch.equal(linear(torch.zeros(2, 4)), torch.tensor([[1.0, 2.0, 3.0]] * 2))


@pytest.mark.parametrize("name", CELLS)
def test_steps_are_the_sequence(name, model_of):
    model, events = compress(model_of(name), "dynamic").model, windows()
    state = model.initial_state(len(events.items))
    found = []
    for step in range(events.items.shape[1]):
        state = model.step(state, events.at(step))
        found.append(model.query(state))
    torch.testing.assert_close(torch.stack(found, dim=1), model.sequence(events), atol=1e-5, rtol=1e-5)
