import numpy as np
import pytest

from models.evaluation.prequential import prequential
from models.family.registry import MODELS, build
from state.errors import RecstreamError
from tests.models.evaluation.walks import dataset, histories, ring


def judged(data, name, **changes):
    def fit(lesson, begin, end):
        fits.append(len(lesson.past))
        model = build(name, data.items)
        model.fit(lesson)
        return model

    fits: list[int] = []
    online = bool(getattr(MODELS[name], "online", False))
    found = prequential(data, fit, online, 0, 1e-6, lambda share, note: None, **changes)[1]
    return found, fits


def test_counting_models_learn_every_event_and_are_fitted_once():
    data = dataset(ring(users=10, length=20))
    found, fits = judged(data, "markov")
    assert fits == [100]
    assert len(found.events) == 100
    assert sorted(data.source.times_ms[found.events]) == sorted(np.sort(data.source.times_ms)[100:])
    assert np.median(found.unmasked.ranks) == 1


def test_what_is_learnt_late_is_known_at_once():
    # Two users tread a path that was never seen in the first half; the second follows the first.
    rows = [[1, 2] * 20, [3, 4, 5, 6, 7, 8, 9, 10] * 2, [3, 4, 5, 6, 7, 8, 9, 10] * 2]
    times = [list(range(40)), [100 + 10 * n for n in range(16)], [300 + 10 * n for n in range(16)]]
    data = dataset(histories(rows, times))
    found, _ = judged(data, "markov")
    follower = found.events >= 56
    # Its first event has nothing before it, and all others repeat what the first one did.
    assert (found.unmasked.ranks[follower][1:] <= 2).all()


def test_a_first_event_of_an_item_is_a_miss():
    data = dataset(histories([[1, 2, 1, 2, 1, 2, 3, 3]]))
    found, _ = judged(data, "popularity")
    assert np.isinf(found.unmasked.ranks[2])


def test_fitted_models_are_fitted_anew_on_what_came_since():
    data = dataset(ring(users=10, length=20))
    found, fits = judged(data, "bpr", refits=2)
    assert fits == [90, 135]
    assert len(found.events) == 100


@pytest.mark.parametrize("name", ["markov", "bpr"])
def test_what_is_not_judged_is_learnt_all_the_same(name):
    data = dataset(ring(users=10, length=20))
    everything, _ = judged(data, name)
    some = np.zeros(len(data.source), np.bool_)
    some[everything.events[::3]] = True
    found, _ = judged(data, name, judged=some)
    assert sorted(found.events) == sorted(everything.events[::3])
    order = np.argsort(found.events)
    among = np.searchsorted(np.sort(everything.events), found.events[order])
    assert (found.unmasked.ranks[order] == everything.unmasked.ranks[np.argsort(everything.events)][among]).all()


def test_a_log_of_one_event_cannot_be_judged():
    with pytest.raises(RecstreamError, match="nothing to judge"):
        judged(dataset(histories([[1]])), "markov")
