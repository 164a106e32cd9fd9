"""The vocabulary from version to version: new items come in, expired ones leave, the rows that stay are copied exactly.

Letters: V rows of a vocabulary, I items the replay buffer knows, D embedding width, N events of the sample.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from models.network import INITIAL_STD, UNKNOWN_ROW, Network, NetworkConfig
from state.replay_sample import Sample

REACH: Final = 3  # how far before and behind a new item its company is looked for
DAY_MS: Final = 86_400_000
_WRONG_TIMES: Final = 0.01  # share of items whose newest event may have a wrong time


@dataclass(frozen=True, slots=True)
class VocabularySettings:
    """Which items a version knows.

    Attributes:
        min_events: Events before an item gets a row.
        max_items: Most rows; items idle longest stay out.
        idle_days: Items without an event for so long leave, by the newest event's clock; 0 keeps them.
    """

    min_events: int = 1
    max_items: int = 1_000_000
    idle_days: float = 0.0


@dataclass(frozen=True, slots=True)
class Growth:
    """A new vocabulary and how it came from the old one.

    Attributes:
        vocabulary: Item id of every row, ``""`` in row 0; kept items first, in their old order.
        kept: Old row of each kept row (K,), row 0 first: new row k is old row ``kept[k]``.
        row_of_item: Row of each item of the sample (I,), 0 for those without one.
        expired: How many old rows left.
    """

    vocabulary: list[str]
    kept: NDArray[np.int64]
    row_of_item: NDArray[np.int32]
    expired: int

    @property
    def added(self) -> int:
        """How many rows are new."""
        return len(self.vocabulary) - len(self.kept)


def grow(previous: list[str], sample: Sample, settings: VocabularySettings) -> Growth:
    """The vocabulary after a sample: previous items that have not expired, then new ones by falling count.

    Args:
        previous: The vocabulary before, ``[""]`` when there was none.
        sample: What the replay buffer knows about items.
        settings: Who stays and who comes in.
    """
    number_of = {item_id: number for number, item_id in enumerate(sample.item_ids)}
    known = np.array([number_of.get(item_id, -1) for item_id in previous[1:]], np.int64)  # (V - 1,) numbers or -1
    newest = int(sample.item_last_ms.max(initial=0))
    alive = np.ones(len(sample.item_ids), np.bool_)
    if settings.idle_days > 0:
        alive = sample.item_last_ms >= newest - int(settings.idle_days * DAY_MS)
    # An item the buffer does not know was idle for as long as it reaches back: to the items that expired, but for a few
    # with wrong times. A buffer begun after a model was fitted to a table cannot tell.
    reaches_back = int((~alive).sum()) > _WRONG_TIMES * len(alive)
    stays = np.where(known >= 0, alive[known] if len(alive) else True, not reaches_back)
    candidates = alive & (sample.item_counts >= settings.min_events)
    candidates[known[known >= 0]] = False
    fresh = np.flatnonzero(candidates)
    excess = int(stays.sum()) + len(fresh) - settings.max_items
    if excess > 0:
        last = np.where(known >= 0, sample.item_last_ms[known] if len(alive) else -1, -1)
        old = np.flatnonzero(stays)
        ages = np.concatenate((last[old], sample.item_last_ms[fresh]))
        out = np.argsort(ages, kind="stable")[:excess]
        stays[old[out[out < len(old)]]] = False
        fresh = np.delete(fresh, out[out >= len(old)] - len(old))
    fresh = fresh[np.argsort(-sample.item_counts[fresh], kind="stable")]
    kept = np.concatenate(([UNKNOWN_ROW], np.flatnonzero(stays) + 1)).astype(np.int64)
    vocabulary = [previous[row] for row in kept.tolist()] + [sample.item_ids[number] for number in fresh.tolist()]
    rows = np.zeros(len(sample.item_ids), np.int32)
    survivors = known[kept[1:] - 1]
    places = np.flatnonzero(survivors >= 0)
    rows[survivors[places]] = places + 1
    rows[fresh] = np.arange(len(kept), len(vocabulary))
    return Growth(vocabulary, kept, rows, len(previous) - len(kept))


def transplant(network: Network, growth: Growth, sample: Sample, seed: int) -> Network:
    """A network for the new vocabulary: kept rows and all other weights bit for bit, new rows from their company.

    A new item starts at the mean embedding of the items its users had just before and after it (weight one over the
    distance), where there is no such item at the unknown row, either with some noise so that no two are one. Its bias
    is what its count would give it, on the scale of the biases there are.

    Args:
        network: The network before, evaluated or not; unchanged.
        growth: From `grow`.
        sample: The events the company is looked up in.
        seed: Randomness of the noise.
    """
    config = network.config
    weights = {name: tensor.detach().cpu() for name, tensor in network.state_dict().items()}
    fields = {**config.to_dict(), "items": len(growth.vocabulary)}
    with torch.random.fork_rng(devices=[]):
        grown = Network(NetworkConfig(**fields))
    kept = torch.from_numpy(growth.kept)
    table, bias = weights["item_embedding.weight"], weights["item_bias"]
    first = len(growth.kept)
    means, company = _company(table[kept].numpy(), growth, sample)
    means[company == 0] = table[UNKNOWN_ROW].numpy()
    noise = np.random.default_rng((seed, 1)).normal(0.0, INITIAL_STD, means.shape)
    fresh = torch.from_numpy((means + noise).astype(np.float32))
    weights["item_embedding.weight"] = torch.cat((table[kept], fresh))
    counts = np.zeros(len(growth.vocabulary))
    np.maximum.at(counts, growth.row_of_item, sample.item_counts)
    logs = np.log1p(counts)
    old = bias[kept].numpy()
    seen = np.flatnonzero(counts[1:first] > 0) + 1
    shift = float((old[seen] - logs[seen]).mean()) if len(seen) else -float(logs[1:].mean()) if len(logs) > 1 else 0.0
    weights["item_bias"] = torch.cat((bias[kept], torch.from_numpy((logs[first:] + shift).astype(np.float32))))
    grown.load_state_dict(weights)
    return grown


def _company(
    table: NDArray[np.float32], growth: Growth, sample: Sample
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Weighted mean embedding (A, D) of the kept items around each added one, and its total weight (A,)."""
    first, added = len(growth.kept), growth.added
    sums, weights = np.zeros((added, table.shape[1])), np.zeros(added)
    order = np.lexsort((sample.times_ms, sample.users))  # stable: ties in order of arrival
    users, rows = sample.users[order], growth.row_of_item[sample.items[order]]
    for distance in range(1, min(REACH, len(rows) - 1) + 1):
        early, late = rows[:-distance], rows[distance:]
        same = users[:-distance] == users[distance:]
        for new, other in ((early, late), (late, early)):
            pairs = np.flatnonzero(same & (new >= first) & (other > UNKNOWN_ROW) & (other < first))
            np.add.at(sums, new[pairs] - first, table[other[pairs]] / distance)
            np.add.at(weights, new[pairs] - first, 1.0 / distance)
    return sums / np.maximum(weights, 1e-12)[:, None], weights
