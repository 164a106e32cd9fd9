import numpy as np
import pytest

from models.serving import ServingModel
from state.events import CLICK, VIEW
from tests.models.recommending import T0, Stream, random_events, rows_of, stepped


@pytest.mark.parametrize("cell", ["gru", "lstm"])
@pytest.mark.parametrize("n", [1, 49, 50, 51, 137])
def test_rehydration_is_stepping_the_last_50_events_from_zero(request, cell, n):
    model, stream = request.getfixturevalue(cell), Stream()
    events = random_events(np.random.default_rng(n), n, users=1)
    stream.send(*events)
    stream.recommender.swap(model)
    advanced = stream.send(("u0", "i5", VIEW, T0 + 2 * 10**9))
    assert advanced.rehydrated == 1
    history = [event[1:] for event in events][-50:]
    assert np.array_equal(stream.hidden_of("u0"), stepped(model, [*history, ("i5", VIEW, T0 + 2 * 10**9)]))
    assert stream.arena.model[stream.arena.find("u0")] == model.fingerprint
    assert stream.send(("u0", "i6", VIEW, T0 + 3 * 10**9)).rehydrated == 0


def test_rehydrating_many_users_in_the_background_gives_the_same_vectors(gru):
    stream = Stream()
    events = random_events(np.random.default_rng(8), 300, users=9)
    stream.send(*events)
    stream.recommender.swap(gru)
    stream.arena.resize_state(gru.state_size)
    stream.recommender.rehydrate(stream.arena, stream.arena.slots([f"u{n}" for n in range(9)]))
    for n in range(9):
        mine = [event[1:] for event in events if event[0] == f"u{n}"][-50:]
        assert np.array_equal(stream.hidden_of(f"u{n}"), stepped(gru, mine))


def test_a_swap_to_another_vocabulary_width_and_cell_serves_it_at_once(gru, build_version):
    stream = Stream(gru, exclude="none")
    events = random_events(np.random.default_rng(9), 40, users=2)
    stream.send(*events)
    words = ["", *(f"j{n}" for n in range(10)), "i3"]
    other = ServingModel.from_version(build_version("lstm", 11, 3, words, seed=5, fingerprint=99)[1])
    stream.recommender.swap(other)
    advanced = stream.send(("u0", "i3", CLICK, T0 + 10**10), ("new", "j1", CLICK, T0))
    assert (advanced.model_version, advanced.rehydrated) == (other.name, 1)
    assert stream.arena.hidden.shape[1] == 22
    mine = [event[1:] for event in events if event[0] == "u0"]
    assert np.array_equal(stream.hidden_of("u0"), stepped(other, [*mine, ("i3", CLICK, T0 + 10**10)]))
    assert np.array_equal(stream.hidden_of("new"), stepped(other, [("j1", CLICK, T0)]))
    assert all(set(items) <= set(words) for items in stream.lists(advanced))
    assert stream.arena.model[stream.arena.find("u1")] == 0  # another width: rebuilt at that user's next event
    assert stream.send(("u1", "j1", CLICK, T0 + 10**10)).rehydrated == 1


def test_a_swap_between_versions_of_one_shape_rebuilds_only_users_with_events(gru, build_version):
    stream = Stream(gru)
    stream.send(("a", "i1", CLICK, T0), ("b", "i2", CLICK, T0))
    kept = stream.hidden_of("b").copy()
    newer = ServingModel.from_version(build_version(seed=6, fingerprint=100)[1])
    stream.recommender.swap(newer)
    assert stream.send(("a", "i2", CLICK, T0 + 5000)).rehydrated == 1
    assert np.array_equal(stream.hidden_of("a"), stepped(newer, [("i1", CLICK, T0), ("i2", CLICK, T0 + 5000)]))
    assert np.array_equal(stream.hidden_of("b"), kept)
    assert stream.arena.model[stream.arena.find("b")] == gru.fingerprint


def test_a_duplicate_does_not_rehydrate_or_answer(gru, build_version):
    stream = Stream(gru)
    stream.send(("a", "i1", CLICK, T0))
    before = rows_of(stream)
    stream.recommender.swap(ServingModel.from_version(build_version(seed=6, fingerprint=100)[1]))
    stream.next_offset = [0, 0, 0]
    advanced = stream.send(("a", "i1", CLICK, T0))
    assert (len(advanced.fresh), len(advanced.items), advanced.rehydrated) == (0, 0, 0)
    assert rows_of(stream) == before
