import pytest
import torch

from models.family.compression import CELLS, KINDS, bytes_of, compress
from models.family.dynamic import Int8Cell
from models.family.registry import MODELS, load
from models.family.sessions import InSessions
from state.errors import RecstreamError
from tests.models.family.walks import lesson, walks, windows

# Most of the original; small models are half biases and scales.
SIZES = {"fp16": 0.6, "int8": 0.45, "pruned": 0.75, "dynamic": 0.8}  # the last leaves the item table as it is
SHIFTS = {"fp16": 0.01, "int8": 0.1, "pruned": 1.0, "dynamic": 0.1}
ROUNDED = [kind for kind in KINDS if kind != "dynamic"]
WHOLE = [(name, kind) for name in ("gru", "lstm", "transformer", "bpr", "fusion") for kind in ROUNDED]


@pytest.mark.parametrize(("name", "kind"), [*WHOLE, *((name, "dynamic") for name in CELLS)])
def test_smaller_models_score_nearly_the_same(name, kind, model_of):
    model, events = model_of(name), windows()
    small = compress(model, kind)
    assert small.size < small.original
    wide = compress(MODELS[name](500), kind)
    assert wide.size < SIZES[kind] * wide.original
    ours = model.item_scores(model.sequence(events)[:, -1])[:, 1:]
    theirs = small.model.item_scores(small.model.sequence(events)[:, -1])[:, 1:]
    spread = ours.std().item()
    assert (ours - theirs).abs().mean() < SHIFTS[kind] * spread


def test_the_original_stays_as_it_is(model_of):
    model = model_of("gru")
    before = {name: tensor.clone() for name, tensor in model.tensors().items()}
    compress(model, "pruned")
    assert all(torch.equal(before[name], tensor) for name, tensor in model.tensors().items())


def test_half_of_the_values_are_gone_when_pruned(model_of):
    table = compress(model_of("gru"), "pruned").model.tensors()["item_embedding.weight"]
    assert (table == 0).float().mean() == pytest.approx(0.5, abs=0.02)


def test_unknown_kinds_are_refused(model_of):
    with pytest.raises(RecstreamError, match="no compression 'zip'"):
        compress(model_of("gru"), "zip")


@pytest.mark.parametrize("name", ["transformer", "popularity"])
def test_only_recurrent_layers_compute_in_8_bits(name, model_of):
    with pytest.raises(RecstreamError, match=f"{name} has no recurrent layer"):
        compress(model_of(name), "dynamic")


def test_sessions_keep_their_gap_when_their_layer_computes_in_8_bits(model_of):
    small = compress(InSessions(model_of("gru"), 600.0), "dynamic").model
    assert isinstance(small, InSessions)
    assert small.gap_seconds == 600.0
    assert isinstance(small.inner.network.cell, Int8Cell)


@pytest.mark.parametrize("sessions", [False, True])
@pytest.mark.parametrize("name", CELLS)
def test_a_layer_in_8_bits_is_saved_and_loaded(name, sessions, model_of, tmp_path):
    model = InSessions(model_of(name), 600.0) if sessions else model_of(name)
    small, events = compress(model, "dynamic").model, windows()
    small.save(tmp_path / "small")
    model.save(tmp_path / "whole")
    assert (tmp_path / "small").stat().st_size < (tmp_path / "whole").stat().st_size
    loaded = load(tmp_path / "small")
    assert torch.equal(loaded.sequence(events), small.sequence(events))
    assert bytes_of(loaded) == bytes_of(small)


def test_a_model_in_8_bits_learns_with_floats(model_of):
    small = compress(model_of("gru"), "dynamic").model
    small.fit(lesson(walks()))
    assert not small.settings()["eight_bit"]
    assert isinstance(small.network.cell, torch.nn.GRU)
