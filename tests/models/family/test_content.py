import numpy as np
import torch

from models.evaluation.judging import judge
from models.evaluation.splits import subset
from models.family.catalogue import Catalogue
from models.family.content import Fusion, GatedItems
from models.family.interface import Lesson
from models.family.transformer import Transformer
from models.sequences import Histories
from tests.models.family.walks import windows

SERIES, PARTS = 6, 5
ITEMS = SERIES * PARTS + 1
COLD = [PARTS * series + PARTS for series in range(SERIES)]  # the last part of every series


def series(users: int = 60, length: int = 10, seed: int = 0) -> Histories:
    """Users who watch the parts of one series in any order, then of another."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(users):
        chosen = rng.permutation(SERIES)[: length // PARTS]
        rows.append(np.concatenate([one * PARTS + rng.permutation(PARTS) + 1 for one in chosen]))
    size = users * length
    none = np.zeros(size, np.int64)
    items = np.concatenate(rows).astype(np.int32)
    return Histories(items, none.astype(np.uint8), none, np.arange(size) * 1000, np.arange(0, size + 1, length))


def catalogue() -> Catalogue:
    names = ["alpha", "bravo", "charlie", "delta", "echo", "foxtrot"]
    rows = [(names[(row - 1) // PARTS], (row - 1) % PARTS + 1) for row in range(1, ITEMS)]
    texts, values = [f"{name} part {part}" for name, part in rows], [(f"series={name}",) for name, _ in rows]
    return Catalogue(["", *texts], [(), *values])


def test_items_never_learnt_are_found_by_their_content():
    source = series()
    cold = np.isin(source.items, COLD)
    place = np.arange(len(source)) % 10
    judged = cold & (place % PARTS > 0)  # something of the same series came right before
    lesson = Lesson(
        subset(source, ~cold),
        subset(source, ~cold),
        np.zeros((~cold).sum(), bool),
        catalogue(),
        effort=0.001,
        timed=False,
    )
    hits = {}
    for model in (Fusion(ITEMS, width=16, reach=5), Transformer(ITEMS, width=16, reach=5)):
        model.epochs = 8
        model.fit(lesson)
        hits[model.name] = (judge(model, source, judged).unmasked.ranks <= 10).mean()
    assert hits["fusion"] > 0.5
    assert hits["transformer"] < 0.1
    assert model.items == ITEMS


def test_the_gate_is_shut_for_items_never_learnt():
    torch.manual_seed(0)
    items = GatedItems(5, 4, 3, 2).eval()
    items.describe(torch.randn(5, 3), torch.rand(5, 2), torch.tensor([0, 4, 0, 1, 9]))
    with torch.no_grad():
        content = items.text @ items.text_weight + items.attributes @ items.attribute_weight
        vectors = items(None)
    torch.testing.assert_close(vectors[2], content[2])
    assert not torch.allclose(vectors[1], content[1], atol=1e-3)
    torch.testing.assert_close(items(torch.tensor([[3, 1]])), vectors[[3, 1]][None])


def test_new_items_get_their_share_of_the_places():
    source = series(users=150)
    cold = np.isin(source.items, COLD)  # a fifth of the items and of the events
    place = np.arange(len(source)) % 10
    kept = subset(source, ~cold)
    held_out = place[~cold] >= 7
    lesson = Lesson(subset(kept, ~held_out), kept, held_out, catalogue(), effort=0.001, timed=False)
    model = Fusion(ITEMS, width=16, reach=5)
    model.epochs = 8
    model.fit(lesson)
    vectors = model.module.vectors
    shares = {}
    for added in (float(vectors.welcome), -20.0):
        vectors.welcome.fill_(added)
        model.module.eval()
        lists = judge(model, source, cold & (place % PARTS > 0)).unmasked.lists
        shares[added] = np.isin(lists[:, :PARTS], COLD).mean()
    found, without = shares.values()
    assert without == 0
    assert 0.03 < found < 0.4  # a tenth over all held-out events; here something of the same series came before
    assert (vectors.biases(model.module.item_bias, None)[COLD] < 0).all()  # of the last, -20


def test_it_works_on_a_gru_and_without_any_content():
    bare = Lesson(series(8), series(8), np.zeros(80, bool), Catalogue.empty(ITEMS), effort=1e-6)
    model = Fusion(ITEMS, width=8, encoder="gru")
    model.fit(bare)
    assert (model.text, model.attributes, model.clock) == (0, 0, True)
    assert model.text_source.startswith("none")
    events = windows(items=ITEMS)
    queries = model.sequence(events)
    state = model.initial_state(4)
    for step in range(13):
        state = model.step(state, events.at(step))
    torch.testing.assert_close(model.query(state), queries[:, -1], atol=1e-5, rtol=1e-5)


def test_hours_matter_where_times_are_known():
    lesson = Lesson(series(8), series(8), np.zeros(80, bool), catalogue(), effort=1e-6)
    model = Fusion(ITEMS, width=8, reach=5)
    model.fit(lesson)
    events = windows(items=ITEMS)
    later = type(events)(events.items, events.kinds, events.gaps_seconds, (events.clock + 5) % 168)
    assert not torch.allclose(model.sequence(events), model.sequence(later))
