"""What a model costs: bytes of state, microseconds of an event."""

from collections.abc import Callable
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from models.evaluation.dataset import Dataset
from models.family.interface import SequenceModel, gather

_COST_USERS: Final = 256
_COST_ROUNDS: Final = 20


def cost(model: SequenceModel, data: Dataset, clock: Callable[[], float]) -> dict[str, Any]:
    """State bytes per user, learnt values, and microseconds per event of a step and of scoring every item.

    Measured on batches of 256 users on one thread, the median of 20.
    """
    source = data.source
    rng = np.random.default_rng(0)
    chosen: NDArray[np.int64] = rng.integers(0, len(source), _COST_USERS)
    events = gather(source, np.stack((chosen, np.ones_like(chosen)), axis=1)).at(0)
    state = model.initial_state(_COST_USERS)
    times: dict[str, list[float]] = {"step_us": [], "score_us": []}
    with torch.inference_mode():
        for _ in range(_COST_ROUNDS):
            started = clock()
            state = model.step(state, events)
            stepped = clock()
            model.scores(state)
            times["step_us"].append(stepped - started)
            times["score_us"].append(clock() - stepped)
    medians = {name: round(float(np.median(taken)) / _COST_USERS * 1e6, 2) for name, taken in times.items()}
    return {"state_bytes": 4 * model.state_size, "parameters": model.parameters, **medians}
