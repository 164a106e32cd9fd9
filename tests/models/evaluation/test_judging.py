import numpy as np
import pytest
import torch

from models.evaluation.judging import judge, rank_events
from models.family.asking import had_before, queries_before
from models.family.interface import clock_of
from models.family.registry import MODELS, build
from tests.models.evaluation.walks import histories
from tests.models.family.walks import ITEMS, SMALL, lesson, walks


@pytest.fixture(scope="module")
def popular():
    model = build("popularity", 6)
    model.learn(torch.zeros(10, 1), np.zeros(10, np.int64), np.array([1] * 4 + [2] * 3 + [3] * 2 + [4]))
    return model


def test_ranks_count_ties_half_and_masks_what_the_user_had(popular):
    source = histories([[1, 2, 3], [2, 1, 5], [4, 1, 4]])
    judged = np.array([False, False, True] * 3)
    found = judge(popular, source, judged)
    assert found.events.tolist() == [2, 5, 8]
    assert found.unmasked.ranks.tolist() == [3, 5, 4]
    assert found.masked.ranks.tolist() == [1, 3, np.inf]  # a repeat cannot be recommended
    assert found.unmasked.lists[0].tolist() == [1, 2, 3, 4, 5]
    assert found.masked.lists[0].tolist() == [3, 4, 5, 0, 0]
    even = build("popularity", 6)
    assert judge(even, source, judged).unmasked.ranks.tolist() == [3, 3, 3]


def test_first_events_are_asked_of_the_initial_state(popular):
    found = judge(popular, histories([[3], [1]]), np.array([True, True]))
    assert found.unmasked.ranks.tolist() == [3, 1]


def test_only_candidates_compete(popular):
    source, events = histories([[1, 3], [1, 4]]), np.array([1, 3])
    candidates = torch.tensor([False, True, False, True, False, True])
    asked = queries_before(popular, source, events)
    assert rank_events(popular, source, events, asked, candidates=candidates).unmasked.ranks.tolist() == [2, np.inf]


def test_a_model_that_diverged_ranks_last():
    model = build("bpr", 6)
    model.factors[:] = torch.nan
    assert judge(model, histories([[1, 2]]), np.array([False, True])).unmasked.ranks.tolist() == [np.inf]


@pytest.mark.parametrize("name", list(MODELS))
def test_queries_are_those_of_stepping_through_what_came_before(name):
    source = walks(users=6, length=9)
    model = MODELS[name](ITEMS, **SMALL.get(name, {}))
    model.fit(lesson(source))
    events = np.array([0, 3, 8, 9 + 5, 9 + 6, 45, 53])
    asked = queries_before(model, source, events)
    hours = torch.from_numpy(clock_of(source.times_ms[events]))
    for number, event in enumerate(events):
        start = event // 9 * 9
        state = model.initial_state(1)
        from models.family.interface import gather

        if event > start:
            window = gather(source, np.array([[start, event - start]]))
            for step in range(event - start):
                state = model.step(state, window.at(step))
        expected = model.query(state) if event > start else model.greeting(hours[number : number + 1])
        torch.testing.assert_close(asked[number], expected[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["transformer", "skip-markov", "gru"])
def test_a_robot_is_asked_about_in_windows_of_bounded_length(name):
    rng = np.random.default_rng(0)
    source = histories([[1, 2, 3, 4], rng.integers(1, 20, 1500).tolist(), [5, 6]])
    model = build(name, 20)
    lengths = []
    whole = model.sequence

    def sequence(events):
        lengths.append(events.items.shape[1])
        return whole(events)

    model.sequence = sequence
    events = np.concatenate(([1, 3], np.arange(500, 1504), [1505]))
    asked = queries_before(model, source, events)
    assert max(lengths) <= 3 * max(model.context, 256)
    for number in (0, 1, 2, 300, 640, 1005, 1006):
        alone = queries_before(model, source, events[number : number + 1])
        # A GRU starts from nothing 200 events and more before: what is farther back has faded.
        assert torch.allclose(asked[number], alone[0], atol=1e-4)


def test_what_users_had_before_is_told_once_and_takes_no_memory_by_the_length_of_histories():
    source = histories([[1, 2, 1, 3, 2], [3], [2, 2, 1]])
    events = np.array([8, 4, 2, 5, 0])  # in any order, as test-then-learn asks
    row, had = had_before(source, events, 4)
    found = [sorted(had[row == number].tolist()) for number in range(len(events))]
    assert found == [[2], [1, 2, 3], [1, 2], [], []]
    robot = histories([[1 + n % 3 for n in range(3000)]])
    row, _ = had_before(robot, np.arange(2000, 3000), 4)
    assert len(row) == 3 * 1000
