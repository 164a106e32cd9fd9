from dataclasses import replace

import numpy as np
import pytest

from models.evaluation.dataset import Dataset, load
from models.evaluation.domains import evaluate_together, merge
from models.evaluation.run import Settings
from models.evaluation.splits import Split, leave_one_out, time_split
from models.family.catalogue import Catalogue
from state.errors import RecstreamError
from tests.models.evaluation.test_run import Clock
from tests.models.evaluation.walks import histories

GROUPS, ITEMS = 8, 6  # items of each group in each domain


def domain(name: str, rows: list[list[int]], times: list[list[int]], users: list[str]) -> Dataset:
    source = histories(rows, times)
    items = GROUPS * ITEMS
    return Dataset(
        name, source, ["", *(f"i{row}" for row in range(1, items + 1))], Catalogue.empty(items + 1), users=users
    )


def tastes(users: int = 150, seed: int = 0) -> tuple[Dataset, Dataset]:
    """Users of one group each: 3 events in the target, each in a group drawn anew, after 4 of that group elsewhere."""
    rng = np.random.default_rng(seed)
    here: list[list[int]] = []
    there: list[list[int]] = []
    when: list[list[int]] = []
    before: list[list[int]] = []
    for user in range(users):
        groups = rng.integers(0, GROUPS, 3)
        here.append([int(group * ITEMS + rng.integers(ITEMS) + 1) for group in groups])
        there.append([int(group * ITEMS + rng.integers(ITEMS) + 1) for group in groups for _ in range(4)])
        start = 1_700_000_000 + user * 10
        when.append([start + 10_000 * (turn + 1) for turn in range(3)])
        before.append([start + 10_000 * turn + 1000 * place for turn in range(3) for place in range(4)])
    names = [f"u{user}" for user in range(users)]
    return domain("shop", here, when, names), domain("films", there, before, names)


def test_logs_are_merged_by_user_and_time():
    target = domain("a", [[1, 2], [3]], [[10, 30], [5]], ["x", "y"])
    other = domain("b", [[4, 5], [6], [7]], [[10, 20], [50], [1]], ["y", "x", "z"])
    merged = merge(target, other)
    shift = target.items - 1
    assert merged.data.users == ["x", "y", "z"] and merged.shared == 2
    assert merged.data.source.starts.tolist() == [0, 3, 6, 7]
    assert merged.data.source.items.tolist() == [1, 2, 6 + shift, 3, 4 + shift, 5 + shift, 7 + shift]
    assert merged.data.source.gaps_seconds.tolist() == [0, 20, 20, 0, 5, 10, 0]
    assert merged.place.tolist() == [0, 1, 3]
    assert merged.data.candidates is not None and merged.data.candidates.sum() == shift
    assert merged.data.vocabulary[1] == "i1" and merged.data.vocabulary[shift + 1] == "b/i1"
    assert len(merged.data.catalogue) == merged.data.items


def test_at_one_moment_the_other_domain_comes_first():
    merged = merge(domain("a", [[1]], [[10]], ["x"]), domain("b", [[2]], [[10]], ["x"]))
    assert merged.data.source.items.tolist() == [2 + GROUPS * ITEMS, 1]


@pytest.mark.parametrize("by_time", [False, True])
def test_nothing_after_what_is_held_out_is_learnt(by_time):
    target, other = tastes(40)
    merged = merge(target, other)
    alone = time_split(target) if by_time else leave_one_out(target.source)
    split = merged.split(alone, by_time)
    source = merged.data.source
    held_out = split.judged | split.validation
    ours = np.zeros(len(source), bool)
    ours[merged.place] = True
    assert np.array_equal(held_out[merged.place], ~alone.learnt) and not held_out[~ours].any()
    assert np.array_equal(split.learnt[merged.place], alone.learnt)
    for user in range(source.users):
        mine = slice(source.starts[user], source.starts[user + 1])
        if held_out[mine].any():
            assert not split.learnt[mine][held_out[mine].argmax() :].any()
    if by_time:
        assert source.times_ms[split.learnt & ~ours].max() < source.times_ms[held_out].min()


def test_the_other_domain_lifts_what_it_foretells():
    target, other = tastes()
    settings = Settings("leave-one-out", Clock(), effort=0.003)
    body = evaluate_together(target, other, ["popularity", "skip-markov", "gru"], settings, lambda *_: None)
    for name in ("skip-markov", "gru"):
        found = body["models"][name]["lift"]["unmasked"]["ndcg@10"]
        assert found["with"] > found["without"] + 0.1
        assert found["interval"][0] > 0
        assert found["difference"] == pytest.approx(found["with"] - found["without"], abs=2e-6)
        assert found["without"] == pytest.approx(body["models"][name]["alone"]["unmasked"]["ndcg@10"], abs=2e-6)
        assert found["with"] == pytest.approx(body["models"][name]["unmasked"]["ndcg@10"], abs=2e-6)
    plain = body["models"]["popularity"]["lift"]["unmasked"]["ndcg@10"]
    assert abs(plain["difference"]) < 0.05  # the other log does not tell what is popular here
    assert any("150 users are in both" in note for note in body["data"]["notes"])


def test_a_domain_that_foretells_nothing_brings_nothing_to_counts():
    target, other = tastes()
    rng = np.random.default_rng(1)
    noise = replace(other.source, items=rng.integers(1, other.items, len(other.source)).astype(np.int32))
    settings = Settings("leave-one-out", Clock())
    body = evaluate_together(target, replace(other, source=noise), ["skip-markov"], settings, lambda *_: None)
    found = body["models"]["skip-markov"]["lift"]["unmasked"]["ndcg@10"]
    assert found["interval"][0] < 0.02 and found["difference"] < 0.03


def test_logs_that_cannot_be_merged_are_refused(tmp_path):
    target, other = tastes(5)
    with pytest.raises(RecstreamError, match="cannot be merged with another log by time"):
        merge(target, replace(other, timed=False))
    with pytest.raises(RecstreamError, match="cannot be evaluated together"):
        merge(target, replace(other, users=[f"v{user}" for user in range(5)]))
    with pytest.raises(RecstreamError, match="test-then-learn"):
        evaluate_together(target, other, ["markov"], Settings("prequential", Clock()), lambda *_: None)


def test_users_are_known_by_name(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("user_id,item_id,timestamp\nb,x,20\na,y,10\nb,z,5\n")
    data = load(path)
    assert data.users == ["b", "a"]
    assert [data.vocabulary[row] for row in data.source.items] == ["z", "x", "y"]
    assert Split(*np.zeros((3, 3), bool)).past(data.source).users == 2
