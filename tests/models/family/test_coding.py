from dataclasses import replace

import numpy as np
import pytest
import torch

from models.family.catalogue import Catalogue
from models.family.coding import MISSING_GAP, MISSING_KIND, Coding
from models.family.content import GatedItems
from models.family.registry import MODELS, load
from models.sequences import Histories
from tests.models.family.walks import ITEMS, SMALL, lesson, walks, windows

NEURAL = ["rnn", "lstm", "gru", "time-lstm", "transformer", "bert", "fusion"]


def holey(seed: int = 0) -> Histories:
    """`walks` without a fifth of the types and a fifth of the times."""
    source, rng = walks(), np.random.default_rng(seed)
    kinds = np.where(rng.random(len(source)) < 0.2, MISSING_KIND, source.kinds).astype(np.uint8)
    gaps = np.where(rng.random(len(source)) < 0.2, MISSING_GAP, source.gaps_seconds)
    return replace(source, kinds=kinds, gaps_seconds=gaps)


def test_codes_only_grow_where_something_is_missing_or_sessions_count():
    assert Coding.of(lesson(walks())) == Coding()
    assert Coding.of(lesson(holey())) == Coding(True, 0.0)
    assert Coding.of(replace(lesson(walks()), session_gap=60.0)) == Coding(True, 60.0)
    assert Coding.read(Coding(True, 60.0).plain()) == Coding(True, 60.0) and Coding.read(None) == Coding()


def test_every_state_has_a_code_of_its_own():
    kinds, gaps = (part.ravel() for part in np.meshgrid(np.arange(4), np.array([-1, 5, 100])))
    codes = Coding(True, 60.0).codes(kinds, gaps)
    assert sorted(codes.tolist()) == list(range(Coding(True).rows))
    assert torch.equal(
        Coding(True, 60.0).codes(torch.from_numpy(kinds), torch.from_numpy(gaps)), torch.from_numpy(codes)
    )


@pytest.mark.parametrize("name", NEURAL)
def test_what_is_missing_is_told_from_what_is_there(name, tmp_path):
    model = MODELS[name](ITEMS, **SMALL.get(name, {}))
    model.fit(lesson(holey()))
    events = windows(users=2, steps=5)
    events.kinds[:], events.gaps_seconds[:] = 0, 0.0
    for column, value in ((events.kinds, MISSING_KIND), (events.gaps_seconds, MISSING_GAP)):
        before = model.sequence(events)[:, -1]
        column[:, -1] = value
        after = model.sequence(events)[:, -1]
        assert after.isfinite().all()
        assert (before - after).abs().max() > 1e-4
    state = model.initial_state(2)
    for step in range(5):
        state = model.step(state, events.at(step))
    torch.testing.assert_close(model.query(state), model.sequence(events)[:, -1], atol=1e-4, rtol=1e-4)
    model.save(tmp_path / "model")
    assert torch.equal(load(tmp_path / "model").sequence(events), model.sequence(events))


@pytest.mark.parametrize("name", list(MODELS))
def test_a_model_of_a_complete_log_takes_events_with_holes(name, model_of):
    model, events = model_of(name), windows()
    events.kinds[0, 3], events.gaps_seconds[1, 4] = MISSING_KIND, MISSING_GAP
    assert model.item_scores(model.sequence(events)[:, -1])[:, 1:].isfinite().all()


def test_items_without_text_or_attributes_have_a_vector_for_that():
    torch.manual_seed(0)
    items = GatedItems(4, 4, 3, 2).eval()
    text, attributes = torch.randn(4, 3), torch.rand(4, 2)
    text[2], attributes[3] = 0, 0
    text[0], attributes[0] = 0, 0
    items.describe(text, attributes, torch.tensor([0, 1, 0, 0]))
    assert items.lacking.tolist() == [[1, 1], [0, 0], [1, 0], [0, 1]]
    with torch.no_grad():
        before = items(None)
        items.without[0] += 1
        after = items(None)
    assert torch.equal(before[[1, 3]], after[[1, 3]])
    torch.testing.assert_close(after[2] - before[2], torch.ones(4))
    bare = GatedItems(4, 4, 0, 2)
    bare.describe(torch.zeros(4, 0), attributes, torch.ones(4, dtype=torch.int64))
    assert not bare.lacking[:, 0].any()  # nobody has a text: that says nothing


def test_fusion_learns_with_a_catalogue_full_of_holes():
    given = lesson(holey())
    texts = [text if row % 3 else "" for row, text in enumerate(given.catalogue.texts)]
    attributes = [values if row % 2 else () for row, values in enumerate(given.catalogue.attributes)]
    model = MODELS["fusion"](ITEMS, **SMALL["fusion"])
    model.fit(replace(given, catalogue=Catalogue(texts, attributes)))
    assert model.item_scores(model.sequence(windows())[:, -1])[:, 1:].isfinite().all()
    assert model.module.vectors.lacking.sum() > ITEMS // 2
