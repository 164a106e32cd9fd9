"""One pass over the events to learn from: truncated windows in batches, each from its user's true state.

Letters: W windows, U users, T steps, S state width.

The windows of a user tile the history, so the state at a window's start is the state after the window before it. Before
a pass the events are run through the network once, without gradient, window after window; training then starts
each window where its user really was, however long ago that began.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.network import UNKNOWN_ROW, Network
from models.sequences import Histories, batch, cut, grouped

_STEPS: Final = 2**14  # of one batch without gradient, padding included
_GRAIN: Final = 10  # cuts fall on multiples of T / 10: few distinct lengths, so that equal ones share a batch
_LEAD: Final = 10  # steps before the first target of a window that gradients still reach


@dataclass(frozen=True, slots=True)
class Pass:
    """The windows of one pass.

    Attributes:
        windows: First event and number of steps (W, 2), users one after the other, each in time order.
        batches: Numbers of the windows of each batch; windows without a target are in none.
    """

    windows: NDArray[np.int64]
    batches: list[NDArray[np.int64]]


def lay_out(
    source: Histories, length: int, steps: int, rng: np.random.Generator, wanted: NDArray[np.bool_] | None = None
) -> Pass:
    """Cut histories into windows and put those with something to learn into batches of like length, in random order.

    Args:
        source: The histories.
        length: T, most steps of a window.
        steps: Most steps of a batch, padding included; one window may be longer.
        rng: Randomness of cuts, company and order.
        wanted: (N,) which events are to be learnt, None for all.
    """
    windows = cut(source.starts, length, rng, max(1, length // _GRAIN))
    if wanted is not None:
        windows = _trimmed(source, windows, wanted)
    useful = np.arange(len(windows)) if wanted is None else np.flatnonzero(_targets(source, windows, wanted) > 0)
    # Windows of about the same length share a batch (little padding); noise of an eighth varies the company they keep.
    by_length = useful[np.argsort(windows[useful, 1] * rng.uniform(0.875, 1.125, len(useful)), kind="stable")]
    sizes = [len(group) for group in grouped(windows[by_length], steps)]
    batches = np.split(by_length, np.cumsum(sizes)[:-1]) if sizes else []
    return Pass(windows, [batches[number] for number in rng.permutation(len(batches))])


def _trimmed(source: Histories, windows: NDArray[np.int64], wanted: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Cut off what stands in front of the targets of a window (W, 2), as a window without any; they still tile.

    Where a pass learns the newest few events of long histories, 90 of 100 steps would only lead to them: the state
    before them is known without their gradient.
    """
    taught = np.flatnonzero(wanted & (source.items != UNKNOWN_ROW))
    begin, end = windows[:, 0], windows.sum(1)
    place = np.searchsorted(taught, begin + 1)
    first = np.append(taught, len(source))[place]  # first target of each window, if it has one
    ahead = np.where(first <= end, first - 1 - _LEAD - begin, 0)
    cut_off = ahead > _LEAD  # less is not worth a window of its own
    order = np.argsort(np.concatenate((np.arange(len(windows)), np.flatnonzero(cut_off) + 0.5)), kind="stable")
    rest = np.stack((begin + ahead, windows[:, 1] - ahead), axis=1)[cut_off]
    kept = np.where(cut_off[:, None], np.stack((begin, ahead), axis=1), windows)
    tiled: NDArray[np.int64] = np.concatenate((kept, rest))[order]
    return tiled


def _targets(source: Histories, windows: NDArray[np.int64], wanted: NDArray[np.bool_]) -> NDArray[np.int64]:
    """How many events each window teaches (W,)."""
    before = np.concatenate(([0], np.cumsum(wanted & (source.items != UNKNOWN_ROW))))
    begin = windows[:, 0] + 1
    counts: NDArray[np.int64] = before[begin + windows[:, 1]] - before[begin]
    return counts


@torch.no_grad()
def initial_states(network: Network, source: Histories, windows: NDArray[np.int64]) -> Tensor:
    """The state (W, S) that each window starts from, on the network's device; zeros where a history begins.

    Args:
        network: The network; its training mode is left as it was.
        source: The histories.
        windows: (W, 2) from `lay_out`: the windows of a user stand together and tile the history.
    """
    training = network.training
    network.eval()
    device = network.item_bias.device
    states = torch.zeros((len(windows), network.config.state_size), device=device)
    follows = np.append(False, windows[1:, 0] == windows[:-1].sum(1))[: len(windows)]
    opens = np.flatnonzero(~follows)
    wave = np.arange(len(windows)) - np.repeat(opens, np.diff(np.append(opens, len(windows))))
    leads = np.flatnonzero(np.append(follows[1:], False))  # windows whose end is another one's start
    for number in range(int(wave[leads].max()) + 1 if len(leads) else 0):
        chosen = leads[wave[leads] == number]
        chosen = chosen[np.argsort(windows[chosen, 1], kind="stable")]
        edges = np.flatnonzero(np.diff(windows[chosen, 1])) + 1
        for alike in np.split(chosen, edges):  # equal lengths: no padding may follow a window's last event
            for part in np.array_split(alike, -(-int(windows[alike, 1].sum()) // _STEPS)):
                inputs = batch(source, windows[part])
                columns = (inputs.items, inputs.kinds, inputs.gaps_seconds)
                events = (torch.from_numpy(column).to(device) for column in columns)
                places = torch.from_numpy(part).to(device)
                items, kinds, gaps = events
                _, states[places + 1] = network.sequence(items, kinds, gaps, states[places])
    network.train(training)
    return states
