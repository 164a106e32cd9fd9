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
from models.kernels import fast_exp, inlined, jit, padded

SELECTORS: Final = 6  # weights are the sum of six vectors, each chosen by a trait of the situation
SELECTOR_SIZES: Final = (1, 7, 11, 12, 8, 12)
UNITS: Final = 8  # 4 gained half as much hit rate, 16 no more
_RATE: Final = np.float32(0.15)  # of the weights shared by all situations; 0.1 to 0.2 do equally well
_RATE_CHOSEN: Final = np.float32(0.02)  # of those of one situation: seldom right by much, so they learn with care
_RATE_NETWORK: Final = np.float32(0.1)  # 0.05 does equally well, 0.03 learns too late
_CAUTION: Final = 1e-2  # first value of the squared gradient sums
_SPREAD: Final = 0.2  # of the network's first input weights, uniform; 0.1 does equally well
_AT_ONCE: Final = 5  # features a unit reads in one pass: its sums are loaded and stored once for five products


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
    n: int,
) -> None:
    """Scores of the candidates under the weights of the situation."""
    m = padded(n)
    features = f.shape[0]
    for k in range(m):
        scores[k] = 0
    for j in range(0, features, _AT_ONCE):
        a, b, c, d, e = np.float32(0), np.float32(0), np.float32(0), np.float32(0), np.float32(0)
        for s in range(SELECTORS):
            row = chosen[s]
            a, b, c = a + values[row, j], b + values[row, j + 1], c + values[row, j + 2]
            d, e = d + values[row, j + 3], e + values[row, j + 4]
        for k in range(m):
            scores[k] += a * f[j, k] + b * f[j + 1, k] + c * f[j + 2, k] + d * f[j + 3, k] + e * f[j + 4, k]
    for u in range(UNITS):
        bias = inputs[u, features]
        for k in range(m):
            units[u, k] = bias
        for j in range(0, features, _AT_ONCE):
            a, b, c, d, e = inputs[u, j], inputs[u, j + 1], inputs[u, j + 2], inputs[u, j + 3], inputs[u, j + 4]
            for k in range(m):
                units[u, k] += a * f[j, k] + b * f[j + 1, k] + c * f[j + 2, k] + d * f[j + 3, k] + e * f[j + 4, k]
        weight = outputs[u]
        for k in range(m):
            units[u, k] = max(units[u, k], np.float32(0.0))
            scores[k] += weight * units[u, k]


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
    m = padded(n)
    best = scores[0]
    for k in range(n):
        best = max(best, scores[k])
    for k in range(n, m):
        scores[k] = -np.inf
    for k in range(m):
        scores[k] = fast_exp(scores[k] - best)
    for k in range(n, m):
        scores[k] = 0
    total = np.float32(0.0)
    for k in range(m):
        total += scores[k]
    scale = np.float32(1.0) / total
    for k in range(m):
        scores[k] *= scale


@inlined  # type: ignore[untyped-decorator]
def _expected(p: NDArray[np.float32], values: NDArray[np.float32], row: int, m: int) -> np.float32:
    total = np.float32(0.0)
    for k in range(m):
        total += p[k] * values[row, k]
    return total


@jit  # type: ignore[untyped-decorator]
def adapt(
    scores: NDArray[np.float32],  # (N,) from `score`; probabilities afterwards
    units: NDArray[np.float32],  # (U, N) from `score`; scratch afterwards
    f: NDArray[np.float32],
    weights: Weights,
    chosen: NDArray[np.int32],
    n: int,
    target: int,
) -> None:
    """One AdaGrad step up the log probability of the target."""
    probabilities(scores, n)
    m = padded(n)
    features = f.shape[0]
    for u in range(UNITS):
        weight = weights.outputs[u]
        g = units[u, target] - _expected(scores, units, u, m)
        weights.output_squares[u] += g * g
        weights.outputs[u] += _RATE_NETWORK * g / np.sqrt(weights.output_squares[u])
        on = np.float32(units[u, target] > 0)
        for k in range(m):  # the gradient at a unit's input, 0 where it is cut off
            units[u, k] = -scores[k] * np.float32(units[u, k] > 0)
        units[u, target] += on
        bias = np.float32(0.0)
        for k in range(m):
            bias += units[u, k]
        for j in range(features + 1):
            g = weight * (bias if j == features else _product(units, u, f, j, m))
            weights.input_squares[u, j] += g * g
            weights.inputs[u, j] += _RATE_NETWORK * g / np.sqrt(weights.input_squares[u, j])
    for j in range(features):
        g = f[j, target] - _expected(scores, f, j, m)
        if g != 0:
            for s in range(SELECTORS):
                row = chosen[s]
                rate = _RATE if s == 0 else _RATE_CHOSEN
                weights.squares[row, j] += g * g
                weights.values[row, j] += rate * g / np.sqrt(weights.squares[row, j])


@inlined  # type: ignore[untyped-decorator]
def _product(a: NDArray[np.float32], i: int, b: NDArray[np.float32], j: int, m: int) -> np.float32:
    total = np.float32(0.0)
    for k in range(m):
        total += a[i, k] * b[j, k]
    return total


@jit  # type: ignore[untyped-decorator]
def take_top(
    candidates: NDArray[np.int32],
    probability: NDArray[np.float32],
    n: int,
    blocked: NDArray[np.uint8],
    items: NDArray[np.int32],  # (E, K) out
    scores: NDArray[np.float32],  # (E, K) out
    e: int,
) -> None:
    """The K best candidates that are not blocked, best first, ties to the lower item number."""
    last = items.shape[1] - 1
    for k in range(n):
        p = probability[k]
        if p < scores[e, last] or p <= 0:
            continue
        item = candidates[k]
        if blocked[item] or (p == scores[e, last] and items[e, last] > 0 and item > items[e, last]):
            continue
        j = last
        while j > 0 and (scores[e, j - 1] < p or (scores[e, j - 1] == p and items[e, j - 1] > item)):
            scores[e, j] = scores[e, j - 1]
            items[e, j] = items[e, j - 1]
            j -= 1
        scores[e, j] = p
        items[e, j] = item
