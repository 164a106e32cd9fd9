from dataclasses import replace

import pytest
import torch

from models.family.attention import bidirectional_bias, near_first
from models.family.course import Plan, held_out_ndcg, held_out_sample
from models.family.losses import cross_entropy, generalised_bce
from models.family.sequential import _Epochs
from models.family.transformer import Bert, Transformer
from models.softmax import Sampler
from tests.models.family.walks import ITEMS, lesson, walks, windows


def quality(model, given):
    return held_out_ndcg(model, given, held_out_sample(given))


@pytest.mark.parametrize("loss", ["ce", "gbce"])
def test_the_transformer_learns_what_follows_what(loss):
    given = replace(lesson(walks(users=60)), effort=0.002)
    model = Transformer(ITEMS, width=16, reach=5, dropout=0.1, loss=loss)
    before = quality(model, given)
    model.fit(given)
    assert quality(model, given) > 0.7 > before + 0.2  # eight times in ten the next item is certain


def test_gbce_begins_with_probabilities_that_sum_to_about_one():
    model = Transformer(ITEMS, width=16, reach=5, loss="gbce")
    model.fit(replace(lesson(walks(users=60)), report=lambda share, note: True))  # stopped after its first batch
    assert torch.sigmoid(model.module.item_bias[1:]).sum().item() == pytest.approx(1, abs=0.1)


def test_bert_learns_what_follows_what(monkeypatch):
    monkeypatch.setattr("models.family.sequential._MOST_EPOCHS", 30)
    given = replace(lesson(walks(users=60)), effort=0.01)
    model = Bert(ITEMS, width=16, window=6, dropout=0.0)
    model.epochs = 30
    model.fit(given)
    assert quality(model, given) > 0.55


def test_large_catalogues_are_learnt_from_samples(monkeypatch):
    monkeypatch.setattr("models.family.sequential.SAMPLED_ABOVE", 5)
    monkeypatch.setattr(Transformer, "negatives", 8)
    given = replace(lesson(walks(users=60)), effort=0.002)
    model = Transformer(ITEMS, width=16, reach=5, dropout=0.1)
    model.fit(given)
    assert quality(model, given) > 0.6


def test_averages_stand_between_epochs_and_training_goes_on_from_the_weights(monkeypatch):
    def losses_and_weights(kept):
        monkeypatch.setattr("models.family.sequential._KEPT", kept)
        torch.manual_seed(3)
        model, given = Transformer(ITEMS, width=8, reach=4), lesson(walks(users=20))
        model.build(None)
        epochs = _Epochs(model, given, Plan(3, 3), None)
        losses = [epochs.one(lambda share, loss: False) for _ in range(3)]
        return losses, model.module.vectors.table.weight.detach().clone()

    plain, weights = losses_and_weights(0.0)
    averaged, average = losses_and_weights(0.98)
    assert plain == averaged
    assert not torch.allclose(weights, average)


def test_an_event_sees_nothing_after_it():
    model, events = Transformer(ITEMS, width=8, reach=4), windows(users=1, steps=9)
    changed = windows(users=1, steps=9)
    changed.items[0, 6:] = changed.items[0, 6:] % (ITEMS - 1) + 1
    ours, theirs = model.sequence(events), model.sequence(changed)
    torch.testing.assert_close(ours[:, :6], theirs[:, :6])
    assert not torch.allclose(ours[:, 6:], theirs[:, 6:])


def test_bert_sees_both_sides_of_a_hidden_item():
    model = Bert(ITEMS, width=8, window=6)
    x, hidden = torch.randn(1, 5, 8), torch.tensor([[False, False, True, False, False]])
    out = model.module.encoder(x, hidden, torch.tensor([5]))
    later = x.clone()
    later[0, 4, 0] += 1
    assert not torch.allclose(out[0, 2], model.module.encoder(later, hidden, torch.tensor([5]))[0, 2])
    beyond = model.module.encoder(later, hidden, torch.tensor([4]))[0, 2]  # the fifth place is padding
    torch.testing.assert_close(beyond, model.module.encoder(x, hidden, torch.tensor([4]))[0, 2])


def test_biases_start_by_liking_near_events():
    bias = near_first(2, torch.arange(4))
    assert (bias[:, 1:] < bias[:, :-1]).all()
    assert bias[0, 3] < bias[1, 3] < 0
    both = bidirectional_bias(near_first(1, torch.arange(-3, 4).abs()), torch.tensor([3]), 4)
    assert torch.isinf(both[0, 0, :, 3]).all()
    assert torch.equal(both[0, 0, 0, :3], both[0, 0, 2, :3].flip(0))


def test_losses_fall_with_the_score_of_the_target():
    torch.manual_seed(0)
    table, targets = torch.eye(30), torch.tensor([3, 7, 9])

    def bias(rows):
        return torch.zeros(30 if rows is None else len(rows))

    sampler = Sampler.of(torch.ones(30), 64)
    losses = {
        "full": lambda query: cross_entropy(query, lambda rows: table, bias, targets, None),
        "sampled": lambda query: cross_entropy(
            query, lambda rows: table if rows is None else table[rows], bias, targets, sampler
        ),
        "gbce": lambda query: generalised_bce(query, lambda rows: table[rows], bias, targets, 30, 29),
    }
    for name, loss in losses.items():
        assert loss(3 * table[targets]) < loss(torch.zeros(3, 30)), name
    exact = torch.nn.functional.cross_entropy(torch.zeros(3, 29), torch.tensor([0, 1, 2]))
    assert losses["full"](torch.zeros(3, 30)) == pytest.approx(exact.item(), rel=1e-5)


def test_a_report_can_stop_it():
    told = list[str]()
    model = Transformer(ITEMS, width=8, reach=3)
    model.fit(replace(lesson(walks()), effort=1.0, report=lambda share, note: told.append(note) or len(told) == 3))
    assert len(told) == 3
    assert all(tensor.isfinite().all() for tensor in model.tensors().values())
