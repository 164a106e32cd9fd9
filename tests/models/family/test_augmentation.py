from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.family.augmentation import OPERATIONS, Variety, apply, correlated, parse_augmentation
from models.family.registry import MODELS
from models.sequences import Histories
from state.errors import RecstreamError
from tests.models.evaluation.walks import histories
from tests.models.family.walks import ITEMS, SMALL, lesson, walks

LOGS = st.tuples(
    st.lists(st.integers(0, 12), min_size=1, max_size=8).filter(lambda lengths: sum(lengths) > 0), st.integers(0, 10**6)
)


def log(lengths: list[int], seed: int) -> Histories:
    rng = np.random.default_rng(seed)
    size = sum(lengths)
    starts = np.concatenate(([0], np.cumsum(lengths)))
    gaps = rng.integers(0, 5000, size)
    gaps[starts[:-1][np.diff(starts) > 0]] = 0
    total = np.cumsum(gaps)
    kinds = rng.integers(0, 3, size).astype(np.uint8)
    return Histories(rng.integers(1, 9, size).astype(np.int32), kinds, gaps, (10**9 + total) * 1000, starts)


def edited(name: str, source: Histories, seed: int = 1, everybody: bool = True):
    rng = np.random.default_rng(seed)
    chosen = np.ones(source.users, bool) if everybody else rng.random(source.users) < 0.5
    edit = OPERATIONS[name](source, chosen, rng, correlated(source, 9))
    return edit, apply(source, edit), chosen


def of_user(source: Histories, user: int) -> list[int]:
    return source.items[source.starts[user] : source.starts[user + 1]].tolist()


@settings(max_examples=60, deadline=None)
@given(LOGS, st.sampled_from(list(OPERATIONS)), st.booleans())
def test_what_is_varied_is_still_a_log(given_log, name, everybody):
    source = log(*given_log)
    edit, after, chosen = edited(name, source, everybody=everybody)
    assert after.starts[0] == 0 and after.starts[-1] == len(after) == len(edit.origin)
    assert (np.diff(after.starts) >= 0).all() and after.users >= source.users
    assert ((after.items >= 0) & (after.items < 9)).all()
    assert (after.gaps_seconds >= 0).all()
    opens = after.starts[:-1][np.diff(after.starts) > 0]
    assert not after.gaps_seconds[opens].any()
    inside = np.ones(len(after), bool)
    inside[opens] = False
    assert (np.diff(after.times_ms, prepend=0)[inside] >= 0).all()
    for user in np.flatnonzero(~chosen):
        assert of_user(after, user) == of_user(source, user)
    again = edited(name, source, everybody=everybody)[1]
    assert np.array_equal(after.items, again.items) and np.array_equal(after.starts, again.starts)


@settings(max_examples=40, deadline=None)
@given(LOGS)
def test_reordering_keeps_every_item_and_moves_only_one_run(given_log):
    source = log(*given_log)
    after = edited("reorder", source)[1]
    for user in range(source.users):
        before, now = of_user(source, user), of_user(after, user)
        assert sorted(before) == sorted(now)
        changed = [at for at, (one, other) in enumerate(zip(before, now, strict=True)) if one != other]
        span = max(int(np.ceil(0.2 * len(before))), 2)
        assert not changed or changed[-1] - changed[0] < span
    assert np.array_equal(after.times_ms, source.times_ms)


@settings(max_examples=40, deadline=None)
@given(LOGS)
def test_crops_are_runs_of_the_history(given_log):
    source = log(*given_log)
    after = edited("crop", source)[1]
    for user in range(source.users):
        before, now = of_user(source, user), of_user(after, user)
        expected = max(int(np.ceil(0.6 * len(before))), min(2, len(before)))
        assert len(now) == expected
        assert any(before[at : at + len(now)] == now for at in range(len(before) - len(now) + 1))


@settings(max_examples=40, deadline=None)
@given(LOGS)
def test_masks_hide_insertions_add_and_prefixes_begin(given_log):
    source = log(*given_log)
    masked = edited("mask", source)[1]
    assert ((masked.items == source.items) | (masked.items == 0)).all()
    edit, inserted, _ = edited("insert", source)
    assert np.array_equal(inserted.items[~edit.inserted], source.items)
    pairs = {
        (a, b) for u in range(source.users) for a, b in zip(of_user(source, u), of_user(source, u)[1:], strict=False)
    }
    near = pairs | {(b, a) for a, b in pairs}
    for at in np.flatnonzero(edit.inserted):
        assert (inserted.items[at], source.items[edit.origin[at]]) in near
    shortened = edited("prefix", source)[1]
    for user in range(source.users, shortened.users):
        now = of_user(shortened, user)
        assert len(now) >= 2
        assert any(
            of_user(source, one)[: len(now)] == now and len(of_user(source, one)) > len(now)
            for one in range(source.users)
        )


def test_shares_are_about_what_they_should_be():
    source = walks(users=200, length=30)
    rng, chosen = np.random.default_rng(0), np.ones(200, bool)
    alike = correlated(source, ITEMS)
    assert (OPERATIONS["mask"](source, chosen, rng, alike).items == 0).mean() == pytest.approx(0.3, abs=0.03)
    assert OPERATIONS["insert"](source, chosen, rng, alike).inserted.sum() == pytest.approx(1200, abs=120)
    assert len(OPERATIONS["crop"](source, chosen, rng, alike).origin) == 200 * 18


def test_correlated_items_stand_beside_each_other():
    alike = correlated(histories([[1, 2, 1, 2], [3, 4, 3, 4], [5]]), 7)
    assert (alike[1] == 2).all() and (alike[3] == 4).all() and not alike[5].any() and not alike[6].any()


def test_every_epoch_is_another_and_the_seed_says_which():
    past = walks(users=40, length=12)
    ratings = np.arange(len(past), dtype=np.float32)
    given_ = replace(lesson(past, held_out=0), augment=tuple(OPERATIONS), ratings=ratings)
    one, two = Variety(given_), Variety(given_)
    first, of_first = one.histories()
    assert not np.array_equal(first.items, one.histories()[0].items)
    assert np.array_equal(first.items, two.histories()[0].items)
    assert of_first is not None and len(of_first) == len(first)
    real = np.isfinite(of_first)
    same = (first.items == past.items[np.where(real, of_first, 0).astype(int)]) | (first.items == 0)
    assert same[real].all() and not real.all()  # ratings follow their events, inserted events have none
    assert other_seed(given_).shape != first.items.shape or not np.array_equal(other_seed(given_), first.items)
    plain, _ = Variety(replace(given_, augment=())).histories()
    assert plain is given_.past


def other_seed(given_):
    return Variety(replace(given_, seed=1)).histories()[0].items


@pytest.mark.parametrize("name", ["gru", "transformer", "bert", "fusion"])
def test_neural_models_learn_from_varied_histories(name):
    models = []
    for augment in ((), ("crop", "mask"), ("crop", "mask")):
        model = MODELS[name](ITEMS, **SMALL.get(name, {}))
        model.fit(replace(lesson(walks(10, 8)), augment=augment))
        models.append(model.tensors())
    plain, varied, again = models
    assert any(not np.array_equal(plain[key], varied[key]) for key in plain)
    assert all(np.array_equal(again[key], varied[key]) for key in varied)


def test_operations_are_named():
    assert parse_augmentation("reorder, crop") == ("crop", "reorder")
    assert parse_augmentation("all") == tuple(OPERATIONS)
    with pytest.raises(RecstreamError, match="varied by 'rotate'"):
        parse_augmentation("rotate")
