"""What the neighbour, factor and recurrent models do, each by itself, and the files models are kept in."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from models.family.course import Plan, epochs_for, held_out_ndcg, held_out_sample, run_course
from models.family.ensemble import Ensemble
from models.family.factors import Bpr
from models.family.interface import EventBatch, gather
from models.family.neighbours import SessionKnn
from models.family.recurrent import Gru, Lstm, TimeLstm
from models.family.registry import MODELS, build, load
from models.network import Network, NetworkConfig
from models.sequences import Histories
from state.errors import RecstreamError
from tests.models.family.walks import ITEMS, lesson, walks, windows


def histories(rows: list[list[int]]) -> Histories:
    items = np.array([row for user in rows for row in user], np.int32)
    none = np.zeros(len(items), np.int64)
    starts = np.cumsum([0, *map(len, rows)])
    return Histories(items, none.astype(np.uint8), none, np.arange(len(items)) * 1000, starts)


def test_neighbours_vote_for_what_came_after_the_shared_item():
    model = SessionKnn(9)
    model.fit(lesson(histories([[1, 2, 3], [1, 2, 3], [5, 2, 6], [7, 8]]), held_out=0, items=9))
    scores = model.scores(torch.tensor([[2.0, 1.0, *[0.0] * 18]]))[0]
    assert scores.argsort(descending=True)[:2].tolist() == [3, 6]  # more shared with the first two
    assert scores[8] < 0.01


def test_long_histories_are_cut_into_sessions_the_same_way_whole_or_bit_by_bit():
    items = np.random.default_rng(0).integers(1, 9, 130).tolist()
    whole, bits = SessionKnn(9), SessionKnn(9)
    whole.fit(lesson(histories([items]), held_out=0, items=9))
    for item in items:
        bits.learn(torch.zeros(1, 20), np.array([0]), np.array([item]))
    query = torch.tensor([[float(item) for item in items[60:40:-1]]])
    torch.testing.assert_close(whole.scores(query), bits.scores(query))
    assert len(whole.tensors()["last"]) == 3


def test_factors_tell_tastes_apart():
    # Two tastes: users of the first have items 1 to 6, of the second 7 to 12, each but two of theirs.
    rng = np.random.default_rng(0)
    rows = [(rng.permutation(6)[:4] + 1 + 6 * (user % 2)).tolist() for user in range(80)]
    model = Bpr(13, width=8)
    model.fit(replace(lesson(histories(rows), held_out=1, items=13), effort=1.0))
    events = gather(histories([[1, 2, 3], [8, 9, 10]]), np.array([[0, 3], [3, 3]]))
    scores = model.item_scores(model.sequence(events)[:, -1])
    assert scores[0, 1:7].mean() > scores[0, 7:].mean() + 0.3
    assert scores[1, 7:].mean() > scores[1, 1:7].mean() + 0.3


def test_unknown_items_do_not_move_a_factor_user():
    model, zero = Bpr(5, width=3), torch.zeros(2, dtype=torch.int64)
    state = torch.randn(2, 3)
    assert torch.equal(model.step(state, EventBatch(zero, zero, zero.float(), zero)), state)


def test_a_gru_of_the_family_is_the_network_that_is_served():
    model = Gru(20, hidden=6, embedding=4)
    network = Network(NetworkConfig(20, "gru", 6, 4)).eval()
    network.load_state_dict(model.tensors())
    events = windows(items=20)
    with torch.no_grad():
        outputs, _ = network.sequence(events.items, events.kinds, events.gaps_seconds)
        scores = network.scores(outputs[:, -1])
    torch.testing.assert_close(model.item_scores(model.sequence(events)[:, -1]), scores)


def test_time_fades_only_the_time_aware_memory():
    torch.manual_seed(0)
    aware, plain = TimeLstm(ITEMS, 8, 6), Lstm(ITEMS, 8, 6)
    with torch.no_grad():
        for parameter in [*aware.network.parameters(), *plain.network.parameters()]:
            parameter.normal_(std=0.5)
        for network in (aware.network, plain.network):
            network.gap_weight.zero_()
    events = windows(users=2, steps=6)
    later = EventBatch(events.items, events.kinds, events.gaps_seconds * 1000, events.clock)
    assert not torch.allclose(aware.sequence(events), aware.sequence(later))
    torch.testing.assert_close(plain.sequence(events), plain.sequence(later))


def test_without_gaps_the_time_aware_lstm_is_an_lstm():
    aware, plain = TimeLstm(ITEMS, 8, 6), Lstm(ITEMS, 8, 6)
    with torch.no_grad():
        aware.network.decay.weight.normal_()
    plain.restore({name: tensor for name, tensor in aware.tensors().items() if not name.startswith("decay")})
    events = windows()
    events.gaps_seconds.zero_()
    torch.testing.assert_close(aware.sequence(events), plain.sequence(events), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", ["gru", "rnn", "lstm", "time-lstm"])
def test_recurrent_models_learn_what_follows_what(name):
    given = replace(lesson(walks(users=60)), effort=2e-3)
    model = MODELS[name](ITEMS, hidden=24, embedding=12, dropout=0.1)
    model.fit(given)
    assert held_out_ndcg(model, given, held_out_sample(given)) > 0.6


def test_an_ensemble_gives_weight_to_who_knows():
    given = replace(lesson(walks(users=60)), effort=1e-6)
    model = Ensemble(ITEMS, ("skip-markov", "popularity"))
    model.fit(given)
    skip, popular = model.weights.tolist()
    assert skip > 2 * popular
    sample = held_out_sample(given)
    assert held_out_ndcg(model, given, sample) >= held_out_ndcg(model.members[0], given, sample) - 0.02
    with pytest.raises(RecstreamError, match="cannot have the members oracle"):
        Ensemble(ITEMS, ("oracle",))


def test_an_ensemble_of_adopted_members_is_the_one_that_fits_them_itself():
    given = replace(lesson(walks(users=40)), effort=1e-6)
    whole, adopting = Ensemble(ITEMS), Ensemble(ITEMS)
    whole.fit(given)
    members = {name: build(name, ITEMS) for name in ("gru", "popularity")}
    for member in members.values():
        member.fit(given)
    adopting.adopt(members)
    adopting.fit(given)
    assert adopting.members[0] is members["gru"]
    for name, tensor in whole.tensors().items():
        torch.testing.assert_close(adopting.tensors()[name], tensor, msg=name)


@pytest.mark.parametrize("again", [True, False], ids=["who come back", "who never do"])
def test_an_ensemble_learns_whether_people_come_back_to_items(again):
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(60):
        once = (rng.permutation(20) + 1).tolist()
        rows.append([*once[:3], *rng.choice(once[:3], 7).tolist()] if again else once[:10])
    model = Ensemble(21, ("popularity", "skip-markov"))
    model.fit(lesson(histories(rows), items=21))
    assert (model.own > 0) == again


def test_epochs_follow_the_amount_of_data():
    small, large = lesson(walks(users=5)), lesson(walks(users=500))
    assert epochs_for(replace(small, effort=1.0), 1e5, 16) == 16
    assert epochs_for(replace(large, effort=1e-3), 1e5, 16) < epochs_for(replace(small, effort=1e-3), 1e5, 16)
    assert epochs_for(replace(large, effort=1e-9), 1e5, 16) == 3


def test_a_recurrent_model_stops_when_held_out_events_are_ranked_no_better():
    given, told = replace(lesson(walks(users=40)), effort=1.0), list[float]()
    noise = np.random.default_rng(0).integers(1, ITEMS, len(given.source)).astype(np.int32)
    given.source.items[:] = noise  # nothing held out can be foretold
    model = Gru(ITEMS, hidden=8, embedding=6)
    model.fit(replace(given, report=lambda share, note: told.append(share)))
    assert max(told) < 0.9


def test_a_log_too_long_for_one_epoch_is_learnt_in_part():
    given = lesson(walks(users=60))
    assert 0 < epochs_for(replace(given, effort=1.0), 1e12, 16) < 1
    shares = []
    model = build("gru", ITEMS)
    module, seen = model.network, []

    def epoch(report):
        for number in range(1, 11):
            seen.append(number)
            if report(number / 10, 1.0):
                break
        return 1.0

    told = replace(given, report=lambda share, note: shares.append(share))
    run_course(model, module, told, Plan(1.4, 5), epoch)
    assert seen == [*range(1, 11), 1, 2, 3, 4]
    assert shares == sorted(shares) and shares[-1] == 1.0


def test_the_clock_is_the_hour_of_the_week():
    monday = 1_704_067_200_000  # 2024-01-01, a Monday, 00:00 UTC
    none = np.zeros(3, np.int64)
    times = monday + 3_600_000 * np.array([0, 25, 167])
    source = Histories(np.ones(3, np.int32), none.astype(np.uint8), none, times, np.array([0, 3]))
    assert gather(source, np.array([[0, 3]])).clock.tolist() == [[0, 25, 167]]


def test_files_that_are_no_models_are_refused(tmp_path):
    with pytest.raises(RecstreamError, match="cannot be read"):
        load(tmp_path / "missing.safetensors")
    (tmp_path / "junk").write_bytes(b"junk" * 20)
    with pytest.raises(RecstreamError, match="cannot be read"):
        load(tmp_path / "junk")
    save_file({"x": torch.zeros(1)}, tmp_path / "other")
    with pytest.raises(RecstreamError, match="not a model this release can read"):
        load(tmp_path / "other")
    header = {"format": "1", "model": "oracle", "settings": "{}"}
    save_file({"x": torch.zeros(1)}, tmp_path / "oracle", metadata=header)
    with pytest.raises(RecstreamError, match="holds a model 'oracle'"):
        load(tmp_path / "oracle")
    save_file(
        {"x": torch.zeros(1)}, tmp_path / "short", metadata={**header, "model": "gru", "settings": '{"items": 5}'}
    )
    with pytest.raises(RecstreamError, match="is damaged"):
        load(tmp_path / "short")
    with pytest.raises(RecstreamError, match="no model 'oracle'"):
        build("oracle", 5)
