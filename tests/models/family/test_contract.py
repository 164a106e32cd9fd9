"""What every model of the family promises, checked on every model."""

import numpy as np
import pytest
import torch

from models.family.interface import EventBatch
from models.family.registry import MODELS, build, load
from state.errors import RecstreamError
from tests.models.family.walks import ITEMS, fitted, lesson, walks, windows

CLOSE = {"atol": 1e-4, "rtol": 1e-4}
pytestmark = pytest.mark.parametrize("name", list(MODELS))


def stepped(model, events):
    """Queries after every step of windows, one event at a time."""
    state, found = model.initial_state(len(events.items)), []
    for step in range(events.items.shape[1]):
        state = model.step(state, events.at(step))
        found.append(model.query(state))
    return torch.stack(found, dim=1), state


def test_steps_agree_with_the_sequence_however_long(name, model_of):
    model = model_of(name)
    events = windows(users=3, steps=40)
    queries, _ = stepped(model, events)
    torch.testing.assert_close(model.sequence(events), queries, **CLOSE)


def test_the_last_query_of_padded_windows_is_that_of_the_sequence(name, model_of):
    model, events, steps = model_of(name), windows(), torch.tensor([1, 13, 4, 7])
    events = EventBatch(
        *(getattr(events, part) * (torch.arange(13)[None] < steps[:, None]) for part in EventBatch.__slots__)
    )
    expected = torch.stack([model.sequence(events.rows(torch.tensor([row])))[0, steps[row] - 1] for row in range(4)])
    torch.testing.assert_close(model.last(events, steps), expected, **CLOSE)


def test_a_user_gets_the_same_however_users_are_batched(name, model_of):
    model, events = model_of(name), windows(users=5)
    together, _ = stepped(model, events)
    apart = torch.cat([stepped(model, events.rows(torch.tensor(part)))[0] for part in ([0, 3], [1], [2, 4])])
    torch.testing.assert_close(together[[0, 3, 1, 2, 4]], apart, **CLOSE)
    scores = model.item_scores(together[:, -1])
    alone = torch.cat([model.item_scores(together[row : row + 1, -1]) for row in range(5)])
    torch.testing.assert_close(scores, alone, **CLOSE)


def test_the_state_is_bounded_and_steps_leave_it_alone(name, model_of):
    model, events = model_of(name), windows(steps=60)
    state = model.initial_state(4)
    before = state.clone()
    after = model.step(state, events.at(0))
    assert state.shape == after.shape == (4, model.state_size)
    assert torch.equal(state, before)
    _, end = stepped(model, events)
    assert end.shape == (4, model.state_size) and end.isfinite().all()


def test_events_before_the_context_do_not_matter(name, model_of):
    model, events = model_of(name), windows(users=2, steps=70)
    if model.context >= 70:
        pytest.skip("a recurrent state may remember for ever")
    recent = EventBatch(*(getattr(events, part)[:, -model.context :] for part in EventBatch.__slots__))
    torch.testing.assert_close(model.sequence(events)[:, -1], model.sequence(recent)[:, -1], **CLOSE)


def test_every_item_is_scored_but_the_unknown_one(name, model_of):
    model, events = model_of(name), windows()
    for state in (model.initial_state(4), stepped(model, events)[1]):
        scores = model.scores(state)
        assert scores.shape == (4, ITEMS)
        assert (scores[:, 0] == -torch.inf).all()
        assert scores[:, 1:].isfinite().all()


def test_saved_and_loaded_it_is_the_same(name, model_of, tmp_path):
    model, events, path = model_of(name), windows(), tmp_path / "model.safetensors"
    model.save(path)
    copy = load(path)
    assert (copy.name, copy.items, copy.state_size, copy.context) == (name, ITEMS, model.state_size, model.context)
    queries, state = stepped(model, events)
    again, restored = stepped(copy, events)
    assert torch.equal(queries, again) and torch.equal(state, restored)
    assert torch.equal(model.scores(state), copy.scores(restored))


def test_the_same_seed_gives_the_same_model(name, model_of):
    model, again = model_of(name), fitted(name)
    ours, theirs = model.tensors(), again.tensors()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_fitting_leaves_the_global_generator_alone(name):
    model = build(name, ITEMS)
    before = torch.get_rng_state()
    model.fit(lesson(walks(users=4, length=5)))
    assert torch.equal(torch.get_rng_state(), before)


def test_it_learns_what_follows_what(name, model_of):
    if name not in ("markov", "skip-markov", "session-knn"):
        pytest.skip("knows no order, or needs a longer training: see the tests of its module")
    model = model_of(name)
    rows = torch.arange(1, ITEMS - 1)
    zeros = torch.zeros_like(rows)
    state = model.step(model.initial_state(len(rows)), EventBatch(rows, zeros, zeros.float(), zeros))
    assert model.scores(state).argmax(1).tolist() == (rows + 1).tolist()


@pytest.mark.parametrize("users, length", [(1, 1), (3, 1), (2, 2), (1, 3)])
def test_hardly_any_data_still_gives_a_model(name, users, length):
    model = build(name, ITEMS)
    model.fit(lesson(walks(users, length), held_out=0))
    scores = model.scores(model.initial_state(1))
    assert scores[:, 1:].isfinite().all()


def test_learning_online_equals_fitting_or_is_refused(name):
    model, past = build(name, ITEMS), walks(users=5, length=8)
    if not model.online:
        with pytest.raises(RecstreamError, match="event by event"):
            model.learn(torch.zeros(1, model.state_size), np.zeros(1, np.int64), np.ones(1, np.int64))
        return
    model.fit(lesson(past, held_out=0))
    online = build(name, ITEMS)
    order = np.argsort(past.times_ms, kind="stable")
    state = online.initial_state(5)
    for place in order:
        user = int(place // 8)
        online.learn(
            online.query(state[user : user + 1]), np.array([user]), past.items[place : place + 1].astype(np.int64)
        )
        row = torch.tensor([int(past.items[place])])
        none = torch.zeros_like(row)
        state[user] = online.step(state[user : user + 1], EventBatch(row, none, none.float(), none))[0]
    torch.testing.assert_close(online.scores(state), model.scores(state), **CLOSE)
