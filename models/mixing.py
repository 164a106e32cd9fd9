"""From what the experts say about candidates to one score each, and how the mixing weights learn.

A candidate's score is a weighted sum of its features plus the output of a small network over the same features. The
sum's weight vector is itself a sum of six, chosen by traits of the situation (`models.candidates`), so that trust in an
expert depends on what it has to go by. The network (8 rectified units) sees what no sum can: that a feature counts only
where another is weak. Its output weights begin at 0, so that everything begins as the plain mixture. The softmax of the
scores over the candidates is a probability of being next; an event takes one AdaGrad step along the gradient of its log
probability, so no rate has to be fitted to a data set.

Letters: N candidates, F features, U = 8 units, R = 51 rows of the weight table, K recommendations.
References: Mattern, "Mixing strategies in data compression", DCC 2012 (gated logistic mixing);
Duchi, Hazan, Singer, "Adaptive subgradient methods", JMLR 2011.
"""

from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.features import FEATURES, MIXTURE
from models.kernels import inlined, jit, padded
from models.lanes import (
    below,
    equal_to,
    exp_lanes,
    highest,
    lanes,
    lanes_of,
    larger,
    lowest_bit,
    positive,
    put,
    put_in,
    spread,
    sum_of,
)
from models.vectors import LANES

SELECTORS: Final = 6  # weights are the sum of six vectors, each chosen by a trait of the situation
SELECTOR_SIZES: Final = (1, 7, 11, 12, 8, 12)
UNITS: Final = 8  # written out in `score`; 4 gained half as much hit rate, 16 no more
_RATE: Final = np.float32(0.15)  # of the weights shared by all situations; 0.1 to 0.2 do equally well
_RATE_CHOSEN: Final = np.float32(0.02)  # of those of one situation: seldom right by much, so they learn with care
_RATE_NETWORK: Final = np.float32(0.1)  # 0.05 does equally well, 0.03 learns too late
_CAUTION: Final = 1e-2  # first value of the squared gradient sums
_SPREAD: Final = 0.2  # of the network's first input weights, uniform; 0.1 does equally well


class Weights(NamedTuple):
    """What is learnt, and the sums of squared gradients that set the steps."""

    values: NDArray[np.float32]  # (R, F)
    squares: NDArray[np.float32]  # (R, F)
    inputs: NDArray[np.float32]  # (U, F + 1) of the network, the last column is the bias
    input_squares: NDArray[np.float32]  # (U, F + 1)
    outputs: NDArray[np.float32]  # (U,)
    output_squares: NDArray[np.float32]  # (U,)

    @classmethod
    def fresh(cls) -> "Weights":
        """The plain mixture, before anything is learnt."""
        features = len(FEATURES)
        rows = sum(SELECTOR_SIZES)
        values = np.zeros((rows, features), np.float32)
        values[0, MIXTURE] = 1.0
        inputs = np.random.default_rng(0).uniform(-_SPREAD, _SPREAD, (UNITS, features + 1)).astype(np.float32)
        inputs[:, -1] = 0
        return cls(
            values=values,
            squares=np.full_like(values, _CAUTION),
            inputs=inputs,
            input_squares=np.full_like(inputs, _CAUTION),
            outputs=np.zeros(UNITS, np.float32),
            output_squares=np.full(UNITS, _CAUTION, np.float32),
        )

    def freeze(self) -> None:
        """Never learn again: with huge sums of squares AdaGrad takes no steps (their root is still a float32)."""
        for squares in (self.squares, self.input_squares, self.output_squares):
            squares[:] = 1e30

    def column(self, feature: int) -> NDArray[np.float32]:
        """A copy of all weights of one feature, (R + U,)."""
        return np.concatenate([self.values[:, feature], self.inputs[:, feature]])

    def set_column(self, feature: int, weights: NDArray[np.float32]) -> None:
        """Put back what `column` gave."""
        self.values[:, feature], self.inputs[:, feature] = np.split(weights, [len(self.values)])

    def hasten(self, feature: int, kept: float) -> None:
        """Keep only a share of one feature's squared gradients, so that its weights move faster."""
        self.squares[:, feature] *= kept
        self.input_squares[:, feature] *= kept

    def copied(self) -> dict[str, NDArray[Any]]:
        """Copies of the arrays by name."""
        return {name: value.copy() for name, value in self._asdict().items()}


@jit  # type: ignore[untyped-decorator]
def score(
    scores: NDArray[np.float32],  # (N,) out
    units: NDArray[np.float32],  # (U, N) out
    f: NDArray[np.float32],  # (F, N) features
    values: NDArray[np.float32],
    inputs: NDArray[np.float32],
    outputs: NDArray[np.float32],
    chosen: NDArray[np.int32],  # (6,) rows of the weight table for the situation
    mixed: NDArray[np.float32],  # (F,) out: their sum
    n: int,
) -> None:
    """Scores of the candidates under the weights of the situation."""
    features = f.shape[0]
    for j in (0, features - LANES):  # all of them: the two overlap
        row = lanes(values, chosen[0], j)
        for s in range(1, SELECTORS):
            row += lanes(values, chosen[s], j)
        put_in(mixed, j, row)
    zero = spread(0.0)
    for k in range(0, padded(n), LANES):  # a feature is read once for the sum and all units, which stay in registers
        total = zero
        a, b, c, d = (
            spread(inputs[0, features]), spread(inputs[1, features]),
            spread(inputs[2, features]), spread(inputs[3, features]),
        )  # fmt: skip
        e, g, h, i = (
            spread(inputs[4, features]), spread(inputs[5, features]),
            spread(inputs[6, features]), spread(inputs[7, features]),
        )  # fmt: skip
        for j in range(features):
            x = lanes(f, j, k)
            total += mixed[j] * x
            a += inputs[0, j] * x
            b += inputs[1, j] * x
            c += inputs[2, j] * x
            d += inputs[3, j] * x
            e += inputs[4, j] * x
            g += inputs[5, j] * x
            h += inputs[6, j] * x
            i += inputs[7, j] * x
        a, b, c, d = larger(a, zero), larger(b, zero), larger(c, zero), larger(d, zero)
        e, g, h, i = larger(e, zero), larger(g, zero), larger(h, zero), larger(i, zero)
        put(units, 0, k, a)
        put(units, 1, k, b)
        put(units, 2, k, c)
        put(units, 3, k, d)
        put(units, 4, k, e)
        put(units, 5, k, g)
        put(units, 6, k, h)
        put(units, 7, k, i)
        total += outputs[0] * a + outputs[1] * b + outputs[2] * c + outputs[3] * d
        total += outputs[4] * e + outputs[5] * g + outputs[6] * h + outputs[7] * i
        put_in(scores, k, total)


@jit  # type: ignore[untyped-decorator]
def rank(scores: NDArray[np.float32], n: int, target: int) -> np.float32:
    """Place of the target: 1 + better + ties / 2."""
    mine = scores[target]
    better, ties = np.int32(0), np.int32(0)
    for k in range(n):
        better += np.int32(scores[k] > mine)
        ties += np.int32(scores[k] == mine)
    return np.float32(1.0 + better + 0.5 * (ties - 1))


@jit  # type: ignore[untyped-decorator]
def probabilities(scores: NDArray[np.float32], n: int) -> None:
    """Turn scores into their softmax; 0 in the columns past N."""
    if n == 0:
        return
    m = padded(n)
    for k in range(n, m):
        scores[k] = -np.inf
    best = lanes_of(scores, 0)
    for k in range(LANES, m, LANES):
        best = larger(best, lanes_of(scores, k))
    most = highest(best)
    whole = spread(0.0)
    for k in range(0, m, LANES):
        raised = exp_lanes(lanes_of(scores, k) - most)
        put_in(scores, k, raised)
        whole += raised
    scale = np.float32(1.0) / sum_of(whole)
    for k in range(0, m, LANES):
        put_in(scores, k, scale * lanes_of(scores, k))
    for k in range(n, m):
        scores[k] = 0


@jit  # type: ignore[untyped-decorator]
def adapt(
    scores: NDArray[np.float32],  # (N,) from `score`; probabilities afterwards
    units: NDArray[np.float32],  # (U, N) from `score`; scratch afterwards
    f: NDArray[np.float32],
    weights: Weights,
    chosen: NDArray[np.int32],
    gradient: NDArray[np.float32],  # (U + 1, F + 1) scratch
    n: int,
    target: int,
) -> None:
    """One AdaGrad step up the log probability of the target."""
    probabilities(scores, n)
    m, features = padded(n), f.shape[0]
    zero = spread(0.0)
    for u in range(UNITS):
        expected, weight = zero, weights.outputs[u]
        g, on = units[u, target], np.float32(units[u, target] > 0)
        for k in range(0, m, LANES):
            p, unit = lanes_of(scores, k), lanes(units, u, k)
            expected += p * unit
            put(units, u, k, zero - p * positive(unit))  # the gradient at a unit's input, 0 where it is cut off
        g -= sum_of(expected)
        weights.output_squares[u] += g * g
        weights.outputs[u] += _RATE_NETWORK * g / np.sqrt(weights.output_squares[u])
        units[u, target] += on
        total = zero
        for k in range(0, m, LANES):
            total += lanes(units, u, k)
        gradient[u, features] = weight * sum_of(total)
        for j in range(features):
            gradient[u, j] = weight  # the products that it is multiplied with are made below, for all units at once
    for j in range(features):
        _all_products(gradient, units, scores, f, j, m)
        gradient[UNITS, j] = f[j, target] - gradient[UNITS, j]
    for u in range(UNITS):
        for j in range(features + 1):
            g = gradient[u, j]
            weights.input_squares[u, j] += g * g
            weights.inputs[u, j] += _RATE_NETWORK * g / np.sqrt(weights.input_squares[u, j])
    for s in range(SELECTORS):
        row = chosen[s]
        rate = _RATE if s == 0 else _RATE_CHOSEN
        for j in range(features):
            g = gradient[UNITS, j]
            weights.squares[row, j] += g * g
            weights.values[row, j] += rate * g / np.sqrt(weights.squares[row, j])


@inlined  # type: ignore[untyped-decorator]
def _all_products(
    gradient: NDArray[np.float32],
    units: NDArray[np.float32],
    scores: NDArray[np.float32],
    f: NDArray[np.float32],
    j: int,
    m: int,
) -> None:
    """Products of one feature's row with those of all units, times what `gradient` holds, and with the scores."""
    a = b = c = d = e = g = h = i = total = spread(0.0)
    for k in range(0, m, LANES):
        x = lanes(f, j, k)
        a += x * lanes(units, 0, k)
        b += x * lanes(units, 1, k)
        c += x * lanes(units, 2, k)
        d += x * lanes(units, 3, k)
        e += x * lanes(units, 4, k)
        g += x * lanes(units, 5, k)
        h += x * lanes(units, 6, k)
        i += x * lanes(units, 7, k)
        total += x * lanes_of(scores, k)
    gradient[0, j] *= sum_of(a)
    gradient[1, j] *= sum_of(b)
    gradient[2, j] *= sum_of(c)
    gradient[3, j] *= sum_of(d)
    gradient[4, j] *= sum_of(e)
    gradient[5, j] *= sum_of(g)
    gradient[6, j] *= sum_of(h)
    gradient[7, j] *= sum_of(i)
    gradient[UNITS, j] = sum_of(total)


@jit  # type: ignore[untyped-decorator]
def take_top(
    candidates: NDArray[np.int32],
    probability: NDArray[np.float32],  # 0 past N
    n: int,
    blocked: NDArray[np.uint8],
    items: NDArray[np.int32],  # (E, K) out
    scores: NDArray[np.float32],  # (E, K) out
    e: int,
) -> None:
    """The K best candidates that are not blocked, best first, ties to the lower item number."""
    m, place, limit = padded(n), 0, np.float32(np.inf)
    while m > 0 and place < items.shape[1]:
        best = below(lanes_of(probability, 0), limit, 0.0)
        for k in range(LANES, m, LANES):
            best = larger(best, below(lanes_of(probability, k), limit, 0.0))
        limit = highest(best)
        if limit <= 0:
            return
        equal, after = 2, np.int32(0)
        while equal > 1 and place < items.shape[1]:  # of equals one at a time, the lowest item number not had yet
            equal, item = 0, np.int32(0)
            for k in range(0, m, LANES):
                bits = equal_to(lanes_of(probability, k), limit)
                while bits:
                    this = candidates[k + lowest_bit(bits)]
                    bits &= bits - np.int32(1)
                    if this > after:
                        equal += 1
                        item = this if equal == 1 else min(item, this)
            after = item
            if equal and not blocked[item]:
                items[e, place], scores[e, place] = item, limit
                place += 1
