import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from models.network import GAP_SCALE, RECENT, Cell, Network, NetworkConfig
from state.errors import RecstreamError

ITEMS, HIDDEN, EMBEDDING = 23, 12, 7


def build(cell: Cell, seed: int = 3) -> Network:
    torch.manual_seed(seed)
    network = Network(NetworkConfig(items=ITEMS, cell=cell, hidden=HIDDEN, embedding=EMBEDDING)).eval()
    with torch.no_grad():  # every term must matter, the zero-initialised ones too
        for parameter in network.parameters():
            parameter.normal_(std=0.5)
    return network


def batch(users: int, steps: int, seed: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randint(0, ITEMS, (users, steps), generator=generator),
        torch.randint(0, 3, (users, steps), generator=generator),
        torch.randint(-5, 10_000_000, (users, steps), generator=generator),
    )


def expected_inputs(network: Network, items: Tensor, kinds: Tensor, gaps: Tensor) -> Tensor:
    weights = network.state_dict()
    gap = torch.log1p(gaps.clamp(min=0).float()) / GAP_SCALE
    inputs: Tensor = weights["item_embedding.weight"][items] + weights["kind_embedding.weight"][kinds]
    inputs = inputs + gap[..., None] * weights["gap_weight"]
    return inputs


@pytest.mark.parametrize("cell", ["gru", "lstm"])
@torch.no_grad()
def test_whole_sequences_equal_torch_layers(cell: Cell) -> None:
    network, (items, kinds, gaps) = build(cell), batch(users=6, steps=19)
    layer = (nn.GRU if cell == "gru" else nn.LSTM)(EMBEDDING, HIDDEN, batch_first=True)
    layer.load_state_dict(
        {k.removeprefix("cell."): v for k, v in network.state_dict().items() if k.startswith("cell.")}
    )
    expected, last = layer(expected_inputs(network, items, kinds, gaps))
    end = last[0] if cell == "gru" else torch.cat((last[0][0], last[1][0]), dim=1)

    outputs, state = network.sequence(items, kinds, gaps)

    torch.testing.assert_close(outputs, expected)
    torch.testing.assert_close(state, end)


@pytest.mark.parametrize("cell", ["gru", "lstm"])
@torch.no_grad()
def test_whole_sequences_equal_torch_cells_step_by_step(cell: Cell) -> None:
    network, (items, kinds, gaps) = build(cell), batch(users=4, steps=11)
    stepper = (nn.GRUCell if cell == "gru" else nn.LSTMCell)(EMBEDDING, HIDDEN)
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    stepper.load_state_dict({name: network.state_dict()[f"cell.{name}_l0"] for name in names})
    hidden, memory = torch.zeros(4, HIDDEN), torch.zeros(4, HIDDEN)
    outputs, state = network.sequence(items, kinds, gaps)
    for step in range(items.shape[1]):
        inputs = expected_inputs(network, items[:, step], kinds[:, step], gaps[:, step])
        if cell == "gru":
            hidden = stepper(inputs, hidden)
        else:
            hidden, memory = stepper(inputs, (hidden, memory))
        torch.testing.assert_close(outputs[:, step], hidden)
    torch.testing.assert_close(state, hidden if cell == "gru" else torch.cat((hidden, memory), dim=1))


@settings(max_examples=25, deadline=None)
@given(cell=st.sampled_from(["gru", "lstm"]), cut=st.integers(1, 12), seed=st.integers(0, 1000))
@torch.no_grad()
def test_a_sequence_may_be_cut_anywhere(cell: Cell, cut: int, seed: int) -> None:
    network, (items, kinds, gaps) = build(cell, seed), batch(users=3, steps=13, seed=seed)
    outputs, state = network.sequence(items, kinds, gaps)
    first, middle = network.sequence(items[:, :cut], kinds[:, :cut], gaps[:, :cut])
    second, end = network.sequence(items[:, cut:], kinds[:, cut:], gaps[:, cut:], middle)
    torch.testing.assert_close(torch.cat((first, second), dim=1), outputs)
    torch.testing.assert_close(end, state)


@torch.no_grad()
def test_scores_are_query_times_tied_embedding_and_never_the_unknown_row() -> None:
    network, hidden = build("gru"), torch.randn(5, HIDDEN, generator=torch.Generator().manual_seed(1))
    weights = network.state_dict()
    query = hidden @ weights["projection.weight"].T + weights["projection.bias"]
    expected = query @ weights["item_embedding.weight"].T + weights["item_bias"]
    scores = network.scores(hidden)
    torch.testing.assert_close(network.query(hidden), query)
    torch.testing.assert_close(scores[:, 1:], expected[:, 1:])
    assert torch.isneginf(scores[:, 0]).all()


@torch.no_grad()
def test_items_a_user_had_last_score_as_much_more_as_their_weights_say() -> None:
    network, hidden = build("gru"), torch.randn(2, HIDDEN, generator=torch.Generator().manual_seed(1))
    network.repeat_weight.copy_(torch.linspace(-1, 1, RECENT))
    recent = torch.zeros(2, RECENT, dtype=torch.int64)
    recent[0, 0], recent[0, 2], recent[1, RECENT - 1] = 3, 3, 1
    added = network.scores(hidden, recent)[:, 1:] - network.scores(hidden)[:, 1:]
    expected = torch.zeros_like(added)
    expected[0, 2], expected[1, 0] = network.repeats[0] + network.repeats[2], network.repeats[-1]
    torch.testing.assert_close(added, expected)


@torch.no_grad()
def test_negative_gaps_count_as_none() -> None:
    network, (items, kinds, gaps) = build("gru"), batch(users=2, steps=3)
    _, negative = network.sequence(items, kinds, -gaps.abs() - 1)
    _, none = network.sequence(items, kinds, torch.zeros_like(gaps))
    torch.testing.assert_close(negative, none)


def test_gradients_stay_finite_with_the_unknown_row_masked() -> None:
    network, (items, kinds, gaps) = build("lstm").train(), batch(users=4, steps=6)
    outputs, _ = network.sequence(items, kinds, gaps)
    recent = items[:, :, None].expand(-1, -1, RECENT)
    loss = nn.functional.cross_entropy(network.scores(outputs, recent).flatten(0, 1), items.clamp(min=1).flatten())
    loss.backward()  # type: ignore[no-untyped-call]
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in network.parameters())


def test_state_size_is_twice_as_wide_for_an_lstm() -> None:
    assert NetworkConfig(items=3, cell="gru", hidden=10).state_size == 10
    assert NetworkConfig(items=3, cell="lstm", hidden=10).state_size == 20
    assert build("lstm").initial_state(4).shape == (4, 2 * HIDDEN)


@pytest.mark.parametrize(
    "change", [{"cell": "rnn"}, {"items": 1}, {"hidden": 0}, {"embedding": -1}, {"dropout": 1.0}, {"kinds": 2.5}]
)
def test_impossible_configurations_say_which_value_is_wrong(change: dict[str, object]) -> None:
    with pytest.raises(RecstreamError, match=next(iter(change))):
        NetworkConfig(**{"items": 10, **change})  # type: ignore[arg-type]
