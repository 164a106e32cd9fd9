import pytest
import torch

from models.family.registry import MODELS, build
from models.family.repeats import RepeatAware
from models.network import RECENT
from tests.models.family.walks import ITEMS, windows

AWARE = [name for name, model in MODELS.items() if issubclass(model, RepeatAware)]


def with_weights(name: str) -> RepeatAware:
    model = build(name, ITEMS)
    assert isinstance(model, RepeatAware)
    tensors = model.tensors()
    tensors["repeat_weight"] = torch.linspace(-1.0, 1.0, RECENT)
    model.restore(tensors)
    return model


def test_every_neural_model_tells_repeats_apart() -> None:
    assert AWARE == ["rnn", "lstm", "gru", "time-lstm", "transformer", "bert", "fusion"]


@torch.no_grad()
@pytest.mark.parametrize("name", AWARE)
def test_weights_are_added_by_how_many_events_ago_an_item_was_had(name: str) -> None:
    model, events = with_weights(name), windows(users=2, steps=RECENT + 3)
    queries = model.sequence(events)
    for step in (0, 4, RECENT + 2):
        added = model.item_scores(queries[:, step]) - model.bare_scores(queries[:, step, :-RECENT])
        for user in range(2):
            expected = torch.zeros(ITEMS)
            for ago in range(1, min(step + 1, RECENT) + 1):
                expected[events.items[user, step + 1 - ago]] += model.repeats[ago - 1]
            torch.testing.assert_close(added[user, 1:], expected[1:], atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("name", AWARE)
def test_nothing_is_added_for_a_user_who_had_nothing(name: str) -> None:
    model = with_weights(name)
    query = model.query(model.initial_state(1))
    torch.testing.assert_close(model.item_scores(query)[:, 1:], model.bare_scores(query[:, :-RECENT])[:, 1:])
