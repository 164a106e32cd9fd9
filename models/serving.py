"""A model version as the stream uses it: plain arrays, one `step` per event, dense scores by one matrix product.

Everything that does not depend on the user is multiplied out once, when the version is loaded: an item's contribution
to the gates becomes a table row, so a step costs one recurrent product instead of two. No torch at serving time.

Letters: E events, U users, S state width, H hidden width, D embedding width, V rows (items of the vocabulary, row 0
unknown), R latest events.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from models.network import GAP_SCALE, REPEAT_SCALE
from models.registry import Version
from models.repeats import LastItems, add_repeats
from models.step import gru_steps, lstm_steps

_MIN_ROWS: Final = 2  # a one-row product takes another BLAS path whose last bits differ


def gap_feature(gap_seconds: NDArray[np.int64]) -> NDArray[np.float32]:
    """log(1 + gap) scaled to about [0, 1]; negative gaps (late events) count as 0."""
    return (np.log1p(np.maximum(gap_seconds, 0).astype(np.float32)) / np.float32(GAP_SCALE)).astype(np.float32)


@dataclass(frozen=True, slots=True)
class ServingModel:
    """One loaded version, read-only and shared by everything that serves."""

    name: str
    number: int
    fingerprint: int
    cell: str
    state_size: int
    vocabulary: list[str]
    item_gates: NDArray[np.float32]  # (V, G)
    kind_gates: NDArray[np.float32]  # (3, G)
    gap_gates: NDArray[np.float32]  # (G,)
    recurrent: NDArray[np.float32]  # (H, G)
    recurrent_bias: NDArray[np.float32]  # (H,) GRU only
    projection: NDArray[np.float32]  # (H, D + 1): the last column makes the constant 1
    projection_bias: NDArray[np.float32]  # (D + 1,)
    item_scores: NDArray[np.float32]  # (D + 1, V): tied embeddings, the last row is the item bias
    repeats: NDArray[np.float32]  # (R,) added to the score of the item of the d-th last event

    @classmethod
    def from_version(cls, version: Version) -> "ServingModel":
        """Multiply out a version's weights.

        Args:
            version: a verified registry version; its weights are named as in `models.network.Network`.
        """
        weights = {name: tensor.detach().float().cpu().numpy() for name, tensor in version.weights.items()}
        config = version.config
        items = weights["item_embedding.weight"]  # (V, D)
        to_gates = weights["cell.weight_ih_l0"].T  # (D, G)
        bias = weights["cell.bias_ih_l0"].copy()
        recurrent_bias = weights["cell.bias_hh_l0"]
        hidden = config.hidden
        n_bias = np.zeros(hidden, np.float32)
        if config.cell == "gru":  # b_hn stands inside r * (.), so it cannot be folded into the input's part
            bias[: 2 * hidden] += recurrent_bias[: 2 * hidden]
            n_bias = recurrent_bias[2 * hidden :].copy()
        else:
            bias += recurrent_bias
        projection = np.zeros((hidden, items.shape[1] + 1), np.float32)
        projection[:, :-1] = weights["projection.weight"].T
        projection_bias = np.ones(items.shape[1] + 1, np.float32)
        projection_bias[:-1] = weights["projection.bias"]
        return cls(
            name=version.name,
            number=version.number,
            fingerprint=version.fingerprint,
            cell=config.cell,
            state_size=config.state_size,
            vocabulary=version.vocabulary,
            item_gates=np.ascontiguousarray(items @ to_gates + bias),
            kind_gates=np.ascontiguousarray(weights["kind_embedding.weight"] @ to_gates),
            gap_gates=np.ascontiguousarray(weights["gap_weight"] @ to_gates),
            recurrent=np.ascontiguousarray(weights["cell.weight_hh_l0"].T),
            recurrent_bias=n_bias,
            projection=projection,
            projection_bias=projection_bias,
            item_scores=np.ascontiguousarray(np.vstack([items.T, weights["item_bias"][None, :]])),
            repeats=weights["repeat_weight"] * np.float32(REPEAT_SCALE),
        )

    @property
    def hidden(self) -> int:
        """H."""
        return int(self.recurrent.shape[0])

    def steps(
        self,
        state: NDArray[np.float32],
        user: NDArray[np.int32],
        rows: NDArray[np.int32],
        kinds: NDArray[np.uint8],
        gaps: NDArray[np.float32],
    ) -> NDArray[np.float32]:
        """Advance users' states event by event.

        Args:
            state: (U, S), advanced in place, float16 values held as float32.
            user: (E,) whose state an event advances; events of one user in order.
            rows: (E,) item rows, 0 for items outside the vocabulary.
            kinds: (E,) event kinds.
            gaps: (E,) from `gap_feature`.

        Returns:
            (E, H): the user's hidden vector after each event.
        """
        after = np.empty((len(user), self.recurrent.shape[0]), np.float32)
        shared = (state, user, rows, kinds, gaps, self.item_gates, self.kind_gates, self.gap_gates, self.recurrent)
        if self.cell == "gru":
            gru_steps(*shared, self.recurrent_bias, after)
        else:
            lstm_steps(*shared, after)
        return after

    def scores(self, hidden: NDArray[np.float32], last: LastItems) -> NDArray[np.float32]:
        """Scores of every item, a fresh array.

        Args:
            hidden: (E, H).
            last: what the users had last.

        Returns:
            (E, V); entry 0 of a row is of no use.
        """
        query = hidden @ self.projection
        query += self.projection_bias
        padded = np.repeat(query, _MIN_ROWS, axis=0) if len(query) < _MIN_ROWS else query
        scores: NDArray[np.float32] = np.matmul(padded, self.item_scores)
        add_repeats(scores, self.repeats, last)
        return scores[: len(query)]
