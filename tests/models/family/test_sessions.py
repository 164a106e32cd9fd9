from dataclasses import replace

import numpy as np
import pytest
import torch

from models.family.compression import compress
from models.family.interface import EventBatch
from models.family.neighbours import SessionKnn
from models.family.registry import MODELS, load
from models.family.sessions import USUAL_GAP, InSessions, by_session, parse_gap, usual_gap
from models.sequences import Histories
from state.errors import RecstreamError
from tests.models.evaluation.walks import histories
from tests.models.family.walks import ITEMS, SMALL, lesson, walks, windows

GAP = 40_000.0  # `windows` has gaps up to 99,999 s: three sessions in five events
CLOSE = {"atol": 1e-4, "rtol": 1e-4}
MADE = ["session-knn", "skip-markov", "bpr", "gru", "time-lstm", "transformer", "bert", "fusion", "ensemble"]


def breaks(inside: float, between: float, sessions: int = 40, users: int = 30, seed: int = 0) -> Histories:
    """Users whose sessions of ten events have breaks of about so many seconds."""
    rng = np.random.default_rng(seed)
    size = users * sessions * 10
    opens = np.arange(size) % 10 == 0
    gaps = np.exp(np.where(opens, rng.normal(np.log(between), 0.6, size), rng.normal(np.log(inside), 0.8, size)))
    starts = np.arange(0, size + 1, sessions * 10)
    gaps[starts[:-1]] = 0
    none = np.zeros(size, np.uint8)
    return Histories(np.ones(size, np.int32), none, gaps.astype(np.int64), np.cumsum(gaps).astype(np.int64), starts)


@pytest.fixture(scope="module")
def made():
    """Models in sessions by name, each fitted once."""
    found: dict[str, InSessions] = {}

    def of(name: str) -> InSessions:
        if name not in found:
            model = InSessions(MODELS[name](ITEMS, **SMALL.get(name, {})), 3000.0)
            model.fit(lesson(walks()))
            found[name] = InSessions(model.inner, GAP)
        return found[name]

    return of


@pytest.mark.parametrize("inside, between", [(30, 86_400), (5, 1200), (600, 400_000)])
def test_the_gap_lies_between_the_two_kinds_of_breaks(inside, between):
    source = breaks(inside, between)
    gap, why = usual_gap(source)
    assert inside * 2 < gap < between / 2
    assert "between them" in why
    found = by_session(source, gap)
    assert found.users == pytest.approx(30 * 40, rel=0.1)


def test_one_kind_of_breaks_is_half_an_hour():
    assert usual_gap(breaks(100, 100))[0] == USUAL_GAP
    assert usual_gap(walks(2, 5)) == (USUAL_GAP, "half an hour: 8 gaps do not show two kinds of breaks")


def test_gaps_are_read_with_their_unit():
    assert [parse_gap(text) for text in ("90", "90s", "30m", "1.5h", "2d")] == [90, 90, 1800, 5400, 172_800]
    assert parse_gap(" Auto ") is None
    for wrong in ("soon", "0m", "-5m", "5 weeks"):
        with pytest.raises(RecstreamError, match="not a time between"):
            parse_gap(wrong)


def test_sessions_are_cut_at_long_breaks_and_at_users():
    source = histories([[1, 2, 3, 4], [], [5, 6]], [[0, 10, 5000, 5001], [], [0, 99]])
    assert by_session(source, 100).starts.tolist() == [0, 2, 4, 6]
    unknown = replace(source, gaps_seconds=np.array([0, 10, -1, 1, 0, 99]))
    assert by_session(unknown, 100).starts.tolist() == [0, 4, 6]


@pytest.mark.parametrize("name", MADE)
def test_steps_agree_with_sequences_across_sessions(name, made):
    model, events = made(name), windows(users=4, steps=15)
    state, found = model.initial_state(4), []
    for step in range(15):
        before = state.clone()
        after = model.step(state, events.at(step))
        assert torch.equal(before, state) and after.shape == (4, model.state_size)
        state = after
        found.append(model.query(state))
    queries = model.sequence(events)
    torch.testing.assert_close(queries, torch.stack(found, dim=1), **CLOSE)
    steps = torch.tensor([1, 15, 4, 9])
    cut = EventBatch(
        *(getattr(events, part) * (torch.arange(15)[None] < steps[:, None]) for part in EventBatch.__slots__)
    )
    torch.testing.assert_close(model.last(cut, steps), queries[torch.arange(4), steps - 1], **CLOSE)


@pytest.mark.parametrize("name", MADE)
def test_nothing_before_a_session_matters(name, made):
    model, events = made(name), windows(users=1, steps=12)
    events.gaps_seconds[:] = 1.0
    events.gaps_seconds[0, 9] = GAP
    whole = model.sequence(events)[:, -1]
    rest = EventBatch(*(getattr(events, part)[:, 9:] for part in EventBatch.__slots__))
    torch.testing.assert_close(whole, model.sequence(rest)[:, -1], **CLOSE)
    if name != "skip-markov":
        plain = model.inner.sequence(events)[:, -1]
        assert not torch.allclose(whole, plain, atol=1e-6)


@pytest.mark.parametrize("name", ["session-knn", "gru"])
def test_saved_and_made_smaller_it_is_the_same(name, made, tmp_path):
    model, events = made(name), windows()
    model.save(tmp_path / "model.safetensors")
    copy = load(tmp_path / "model.safetensors")
    assert isinstance(copy, InSessions) and copy.gap_seconds == GAP and copy.inner.name == name
    assert torch.equal(copy.sequence(events), model.sequence(events))
    small = compress(model, "fp16").model
    torch.testing.assert_close(small.sequence(events), model.sequence(events), atol=0.01, rtol=0.01)


@pytest.mark.parametrize("name", ["session-knn", "markov"])
def test_learning_event_by_event_equals_fitting(name):
    source = walks(users=5, length=8)
    fitted, online = (InSessions(MODELS[name](ITEMS), 3000.0) for _ in range(2))
    fitted.fit(lesson(source, held_out=0))
    state = online.initial_state(5)
    for place in np.argsort(source.times_ms, kind="stable"):
        user, gap = int(place // 8), source.gaps_seconds[place : place + 1]
        row = source.items[place : place + 1].astype(np.int64)
        online.learn(online.query(state[user : user + 1]), np.array([user]), row, gap)
        zero = torch.zeros(1, dtype=torch.int64)
        event = EventBatch(torch.from_numpy(row), zero, torch.from_numpy(gap.astype(np.float32)), zero)
        state[user] = online.step(state[user : user + 1], event)[0]
    torch.testing.assert_close(online.scores(state), fitted.scores(state), **CLOSE)


def test_neighbours_are_sessions_not_users():
    # Every user does 1 2 in one session and 3 4 in the next; 2 is never followed by 3 within one.
    source = histories([[1, 2, 3, 4]] * 6, [[0, 5, 9000, 9005]] * 6)
    scores = {}
    for model in (SessionKnn(5), InSessions(SessionKnn(5), 100.0)):
        model.fit(lesson(source, held_out=0, items=5))
        zero = torch.zeros(1, dtype=torch.int64)
        state = model.step(model.initial_state(1), EventBatch(torch.tensor([2]), zero, zero.float(), zero))
        scores[model.name] = model.scores(state)[0]
    assert scores["session-knn"].argmax() == 3
    assert scores["in-sessions"][3] == pytest.approx(scores["in-sessions"][4].item(), abs=1e-6)  # popularity alone


@pytest.mark.parametrize("name", ["rnn", "lstm", "gru", "time-lstm", "transformer", "bert", "fusion"])
def test_neural_models_are_told_that_a_session_opens(name):
    model = MODELS[name](ITEMS, **SMALL.get(name, {}))
    model.fit(replace(lesson(walks()), session_gap=3000.0))
    within, opening = windows(users=2, steps=4), windows(users=2, steps=4)
    within.gaps_seconds[:], opening.gaps_seconds[:] = 2999.0, 2999.0
    opening.gaps_seconds[:, -1] = 3000.0
    plain = MODELS[name](ITEMS, **SMALL.get(name, {}))
    plain.fit(lesson(walks()))
    told = (model.sequence(within)[:, -1] - model.sequence(opening)[:, -1]).abs().max()
    untold = (plain.sequence(within)[:, -1] - plain.sequence(opening)[:, -1]).abs().max()
    assert told > 10 * untold
