import pytest
import torch
from torch import Tensor
from torch.nn import functional

from models.softmax import Repeats, Sampler, full_softmax, sampled_softmax


def problem(targets: int, items: int, width: int = 5, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(targets, width, generator=generator).requires_grad_()
    table = torch.randn(items, width, generator=generator).requires_grad_()
    bias = torch.randn(items, generator=generator).requires_grad_()
    return query, table, bias, torch.randint(1, items, (targets,), generator=generator)


@pytest.mark.parametrize(("targets", "items"), [(1, 2), (7, 40), (1000, 300), (33, 20_000)])
def test_full_softmax_equals_cross_entropy_without_the_unknown_row(targets: int, items: int) -> None:
    query, table, bias, rows = problem(targets, items)
    expected = functional.cross_entropy(functional.linear(query, table, bias)[:, 1:], rows - 1)
    gradients = torch.autograd.grad(3 * expected, (query, table, bias))
    loss = full_softmax(query, table, bias, rows)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(3 * loss, (query, table, bias)), gradients, rtol=1e-4, atol=1e-6)


def repeats_of(targets: Tensor, items: int, width: int = 4) -> Repeats:
    """Latest items, the target among them now and then, some twice, some missing; and weights."""
    generator = torch.Generator().manual_seed(9)
    rows = torch.randint(0, items, (len(targets), width), generator=generator)
    rows[::3, 1], rows[::3, 3] = targets[::3], targets[::3]
    return Repeats(rows, torch.randn(width, generator=generator).requires_grad_())


def densely(scores: Tensor, repeats: Repeats) -> Tensor:
    """Repeats added one by one, as they are defined."""
    for d in range(repeats.rows.shape[1]):
        one = functional.one_hot(repeats.rows[:, d], scores.shape[1])
        scores = scores + one * repeats.weights[d]
    return scores


@pytest.mark.parametrize(("targets", "items"), [(1, 2), (7, 40), (1000, 300)])
def test_full_softmax_adds_weights_to_the_items_users_had_last(targets: int, items: int) -> None:
    query, table, bias, rows = problem(targets, items)
    repeats = repeats_of(rows, items)
    scores = densely(functional.linear(query, table, bias), repeats)
    expected = functional.cross_entropy(scores[:, 1:], rows - 1)
    learnt = (query, table, bias, repeats.weights)
    gradients = torch.autograd.grad(3 * expected, learnt)
    loss = full_softmax(query, table, bias, rows, repeats)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(3 * loss, learnt), gradients, rtol=1e-4, atol=1e-6)


def test_what_is_added_to_some_rows_alone_is_what_is_added_to_them_among_all() -> None:
    _, _, _, rows = problem(50, 40)
    repeats, columns = repeats_of(rows, 40), torch.tensor([1, 3, 4, 17, 30, 39])
    everything = densely(torch.zeros(50, 40), repeats)
    torch.testing.assert_close(repeats.added(torch.zeros(50, 6), columns), everything[:, columns])
    torch.testing.assert_close(repeats.of(rows), everything.gather(1, rows[:, None])[:, 0])


def test_large_scores_do_not_overflow() -> None:
    query, table, bias, rows = problem(20, 30)
    loss = full_softmax(query * 1e4, table, bias, rows)
    assert loss.isfinite()
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(loss, (query, table, bias)))


def test_the_sampler_draws_by_smoothed_popularity_and_never_the_unknown_row() -> None:
    counts = torch.tensor([1000, 0, 9, 99, 1])
    sampler = Sampler.of(counts, negatives=200_000)
    drawn = torch.bincount(sampler.draw(torch.Generator().manual_seed(1)), minlength=5)
    weight = torch.tensor([0.0, 1.0, 10.0, 100.0, 2.0]) ** 0.75
    assert drawn[0] == 0
    torch.testing.assert_close(drawn / 200_000, weight / weight.sum(), rtol=0.05, atol=0)
    torch.testing.assert_close(sampler.log_expected[1:].exp(), (weight / weight.sum() * 200_000)[1:], rtol=1e-4, atol=0)


def test_sampled_softmax_approaches_the_full_one() -> None:
    query, table, bias, rows = problem(64, 500, seed=3)
    repeats = repeats_of(rows, 500)
    learnt = (query, table, bias)
    expected = (
        *torch.autograd.grad(full_softmax(query, table, bias, rows), learnt),  # taught by itself
        *torch.autograd.grad(full_softmax(query, table, bias, rows, repeats), repeats.weights),
    )
    counts = torch.randint(0, 100, (500,), generator=torch.Generator().manual_seed(5))

    def distance(negatives: int, seed: int) -> float:
        sampler, generator = Sampler.of(counts, negatives), torch.Generator().manual_seed(seed)
        loss = sampled_softmax(query, lambda at: table[at], lambda at: bias[at], rows, sampler, repeats, generator)
        found = torch.autograd.grad(loss, (*learnt, repeats.weights))
        return sum(float((f - e).norm() / e.norm()) for f, e in zip(found, expected, strict=True)) / len(found)

    few, many = (sum(distance(n, seed) for seed in range(4)) / 4 for n in (200, 20_000))
    assert many < 0.1
    assert many < few / 4


def test_without_the_logq_correction_popular_items_would_be_pushed_down() -> None:
    query, table, bias = torch.zeros(1, 2), torch.zeros(101, 2), torch.zeros(101)
    counts = torch.ones(101, dtype=torch.int64)
    counts[1] = 10**4
    sampler = Sampler.of(counts, negatives=50_000, power=1.0)
    generator = torch.Generator().manual_seed(0)
    wanted = torch.tensor([2])
    loss = sampled_softmax(query, lambda at: table[at], lambda at: bias[at], wanted, sampler, generator=generator)
    assert float(loss) == pytest.approx(float(torch.log(torch.tensor(100.0))), abs=0.1)
