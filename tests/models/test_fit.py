import numpy as np
import polars as pl
import pytest
import torch

from models.fit import Progress, fit_first_model, popularity_bias
from models.network import Cell
from models.registry import Registry
from models.tables import Events
from models.training_settings import TrainingSettings
from state.errors import RecstreamError

QUICK = TrainingSettings(window=20, batch_steps=200, batches=10)


def walks(users: int = 60, length: int = 30, items: int = 15, seed: int = 0) -> Events:
    """Users who step through a ring of items, three times in four to the next one, else anywhere; in time order."""
    rng = np.random.default_rng(seed)
    place = rng.integers(0, items, users)
    rows: list[tuple[str, str, int, int]] = []
    for step in range(length):
        for user in range(users):
            place[user] = (place[user] + 1) % items if rng.random() < 0.75 else rng.integers(0, items)
            rows.append((f"u{user}", f"i{place[user]}", int(rng.integers(0, 3)), (step * users + user) * 1000))
    names, things, kinds, times = zip(*rows, strict=True)
    return Events(pl.Series(names), pl.Series(things), np.array(kinds, np.uint8), np.array(times, np.int64))


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_a_fitted_network_beats_popularity_and_can_be_published(cell: Cell, tmp_path: object) -> None:
    events = walks()
    network, vocabulary, metrics, lineage = fit_first_model(
        events, cell, 24, 12, epochs=12, dropout=0.1, settings=QUICK
    )
    # Three times in four the next item is certain, so no ranking does better than about 0.75 + 0.25 * 0.2 = 0.8.
    assert metrics["mrr@10"] > 0.6 > 2 * metrics["popularity_mrr@10"]
    assert metrics["hr@10"] >= metrics["ndcg@10"] >= metrics["mrr@10"]
    assert metrics["held_out_events"] == 180
    assert lineage["events"] == 1800 and lineage["users"] == 60 and lineage["items"] == 15
    assert lineage["newest_ms"] == 1_799_000 and lineage["held_out_from_ms"] == 1_620_000
    version = Registry(f"{tmp_path}/models").publish(network, vocabulary, metrics, lineage)
    assert Registry(f"{tmp_path}/models").load(version).vocabulary == vocabulary


def test_the_same_seed_gives_the_same_network() -> None:
    first, second, other = (
        fit_first_model(walks(users=20), hidden=8, embedding=4, seed=seed, epochs=2, settings=QUICK)[0]
        for seed in (3, 3, 4)
    )
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(first.item_bias, other.item_bias)


def test_training_stops_when_the_held_out_slice_improves_no_more() -> None:
    noise = walks(users=30, length=20)
    shuffled = Events(noise.users, noise.items.sample(fraction=1, shuffle=True, seed=1), noise.kinds, noise.times_ms)
    epochs = set[int]()
    fit_first_model(shuffled, hidden=8, embedding=4, epochs=40, settings=QUICK, progress=lambda p: epochs.add(p.epoch))
    trained = {epoch for epoch in epochs if epoch <= 40}
    assert len(trained) < 40
    assert epochs - trained == {41, 42}  # the held-out slice is learnt at the end


def test_progress_grows_and_carries_the_best_figures() -> None:
    seen: list[Progress] = []
    fit_first_model(walks(users=20), hidden=8, embedding=4, epochs=3, settings=QUICK, progress=seen.append)
    done = [progress.done for progress in seen]
    assert done == sorted(done) and 0 < done[0] and done[-1] == 1.0
    assert seen[0].quality == {} and seen[-1].quality["ndcg@10"] > 0
    assert all(np.isfinite(progress.loss) for progress in seen)


def test_a_stop_returns_the_best_so_far_at_once() -> None:
    seen: list[Progress] = []

    def stop(progress: Progress) -> bool:
        seen.append(progress)
        return len(seen) >= 3

    network, _, metrics, _ = fit_first_model(
        walks(users=20), hidden=8, embedding=4, epochs=50, settings=QUICK, progress=stop
    )
    assert len(seen) == 3
    assert metrics["epochs"] == 1
    assert all(parameter.isfinite().all() for parameter in network.parameters())


def tiny(users: list[str], items: list[str], times: list[int]) -> Events:
    return Events(pl.Series(users), pl.Series(items), np.zeros(len(users), np.uint8), np.array(times, np.int64))


@pytest.mark.parametrize(
    "events",
    [
        tiny(["a"], ["x"], [5]),
        tiny(["a", "b", "c"], ["x", "x", "y"], [1, 2, 3]),  # nobody comes twice
        tiny(["a"] * 200, ["x", "y"] * 100, [7] * 200),  # all at one time
    ],
    ids=["one event", "no transitions", "one moment"],
)
def test_tables_too_small_to_judge_still_give_a_model(events: Events) -> None:
    network, vocabulary, metrics, lineage = fit_first_model(events, hidden=4, embedding=4, epochs=2)
    assert len(vocabulary) == network.config.items
    assert metrics["held_out_events"] == 0
    assert lineage["held_out_from_ms"] is None
    assert all(parameter.isfinite().all() for parameter in network.parameters())


def test_without_transitions_the_model_ranks_by_popularity() -> None:
    events = tiny(["a", "b", "c"], ["x", "y", "y"], [1, 2, 3])
    network, vocabulary, _, _ = fit_first_model(events, hidden=4, embedding=4, epochs=1)
    scores = network.scores(network.initial_state(1))[0]
    assert vocabulary[int(scores.argmax())] == "y"


def test_popularity_bias_ranks_by_count() -> None:
    bias = popularity_bias(np.array([99, 3, 0, 7]))
    assert bias[0] == 0 and bias.dtype == torch.float32
    assert bias[1:].argsort(descending=True).tolist() == [2, 0, 1]
    assert float(bias[1:].mean()) == pytest.approx(0, abs=1e-6)


def test_nothing_to_fit_is_said() -> None:
    with pytest.raises(RecstreamError, match="no events"):
        fit_first_model(tiny([], [], []))
    with pytest.raises(RecstreamError, match="0 epochs"):
        fit_first_model(tiny(["a"], ["x"], [1]), epochs=0)
    with pytest.raises(RecstreamError, match="hidden"):
        fit_first_model(tiny(["a"], ["x"], [1]), hidden=0)


def test_items_seen_only_in_the_held_out_slice_are_learnt_in_the_end() -> None:
    events = walks(users=40)
    newest = len(events) - len(events) // 20
    items = pl.concat([events.items[:newest], pl.repeat("new", len(events) - newest, eager=True)])
    late = Events(events.users, items, events.kinds, events.times_ms)
    network, vocabulary, _, _ = fit_first_model(late, hidden=8, embedding=4, epochs=3, settings=QUICK)
    row = vocabulary.index("new")
    others = [network.item_bias[vocabulary.index(f"i{item}")] for item in range(15)]
    # It is as frequent as the others by now; the bias of an item never seen would be far below all of theirs.
    assert network.item_bias[row] > min(others) - 0.5
