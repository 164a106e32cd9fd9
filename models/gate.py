"""The gate: is a candidate good enough to serve? Both models rank the newest events, which neither was trained on.

The figure is NDCG@10 over every item, an item a model does not know counting as a miss, so that a candidate is credited
for the items it has learnt to know. The difference is resampled over users, whose events come together.

References:
    Efron and Tibshirani, "An introduction to the bootstrap", 1993 (paired bootstrap of clusters).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.network import Network
from models.ranking import event_ranks, quality
from models.sequences import Histories


@dataclass(frozen=True, slots=True)
class GateSettings:
    """When a candidate is promoted.

    Attributes:
        margin: Most NDCG@10 a candidate may lose against the serving model, as a share of the serving model's.
        least_margin: The same in NDCG@10 itself, for serving models that hardly rank anything.
        risk: Promoted while the resampled probability of losing more than the margin is at most this. A slice of some
            hundred events tells a bad candidate from a good one, not a good one from its twin: at 0.5 a third of the
            good ones were lost to chance, and a stale model loses more than a slightly worse one.
        strict_risk: Most probability, without a margin, that a candidate which learnt only what followed an alarm is
            worse: after a change of the stream it is better by far, after a false alarm it has forgotten much. Let
            through when it was about as good, two of them took the model alone on MovieLens-100K from HR@10 .15 to .12.
        resamples: Bootstrap resamples.
        fewest_events: On fewer the gate cannot tell: a first model may serve, the model being served is kept.
    """

    margin: float = 0.05
    least_margin: float = 0.002
    risk: float = 0.8
    strict_risk: float = 0.2
    resamples: int = 1_000
    fewest_events: int = 50


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the gate found.

    Attributes:
        promoted: Whether the candidate may serve.
        reasons: Why, in sentences.
        candidate: HR@10, NDCG@10, MRR@10 of the candidate.
        serving: The same of the model being served; popularity's when there was none.
        rival: Name of what it was compared with.
        difference: Candidate's NDCG@10 minus the rival's.
        interval: 90% bootstrap interval of the difference.
        losing: Resampled probability that the candidate loses more than the margin.
        margin: The margin in NDCG@10.
        events: Events judged.
        users: Their users.
    """

    promoted: bool
    reasons: tuple[str, ...]
    candidate: dict[str, float]
    serving: dict[str, float]
    rival: str
    difference: float
    interval: tuple[float, float]
    losing: float
    margin: float
    events: int
    users: int

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, for a version's metrics."""
        return {
            "promoted": self.promoted,
            "reasons": list(self.reasons),
            "candidate": self.candidate,
            "rival": self.rival,
            "rival_quality": self.serving,
            "difference": round(self.difference, 6),
            "interval": [round(value, 6) for value in self.interval],
            "losing": round(self.losing, 4),
            "margin": round(self.margin, 6),
            "events": self.events,
            "users": self.users,
        }


def ranks_of(network: Network, source: Histories, wanted: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Ranks of the wanted events that follow another one (K,), in order of the histories; unknown items rank last.

    Args:
        network: Whose rows `source` is in.
        source: The histories.
        wanted: (N,) which events to judge.
    """
    found = np.full(len(source), np.inf)
    events, places = event_ranks(network, source, wanted)
    found[events] = places
    return found[followers(source, wanted)]


def followers(source: Histories, wanted: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Which wanted events follow another one of their user (K,): a first event cannot be foretold from a state."""
    follows = wanted.copy()
    follows[source.starts[:-1][np.diff(source.starts) > 0]] = False
    return np.flatnonzero(follows)


def judge(
    candidate: NDArray[np.float64],
    rival: NDArray[np.float64],
    users: NDArray[np.int64],
    settings: GateSettings,
    seed: int,
    name: str = "",
    *,
    strict: bool = False,
) -> Verdict:
    """Compare a candidate with its rival, event by event.

    Args:
        candidate: The candidate's ranks (K,), infinite for a miss.
        rival: The rival's ranks of the same events (K,).
        users: Whose events they are (K,).
        settings: When to promote.
        seed: Randomness of the resamples.
        name: The serving version; empty when there is none and the rival is popularity.
        strict: Ask for more, as the settings say.
    """
    mine, theirs = dict(quality(candidate)), dict(quality(rival))
    margin = 0.0 if strict else max(settings.margin * theirs["ndcg@10"], settings.least_margin)
    owners = np.unique(users, return_inverse=True)[1]
    differences = _resampled(_gains(candidate) - _gains(rival), owners, settings.resamples, seed)
    difference = float((_gains(candidate) - _gains(rival)).mean()) if len(candidate) else 0.0
    low, high = (float(value) for value in np.quantile(differences, (0.05, 0.95)))
    losing = float((differences < -margin).mean())
    count = f"{len(candidate):,} events of {int(owners.max(initial=-1)) + 1:,} users"
    rival_name = name or "popularity"
    figures = f"NDCG@10 {mine['ndcg@10']:.4f} against {theirs['ndcg@10']:.4f} of {rival_name} on {count}"
    if len(candidate) < settings.fewest_events:
        promoted = not name
        reason = f"too few events to judge: {count}"
    elif losing > (risk := settings.strict_risk if strict else settings.risk):
        promoted = False
        reason = f"{figures}: it loses more than {margin:.4f} with probability {losing:.2f}, over {risk:.2f}"
    else:
        promoted = True
        reason = f"{figures}: it loses more than {margin:.4f} with probability {losing:.2f} only"
    return Verdict(
        promoted, (reason,), mine, theirs, rival_name, difference, (low, high), losing, margin, len(candidate),
        int(owners.max(initial=-1)) + 1,
    )  # fmt: skip


def _gains(ranks: NDArray[np.float64]) -> NDArray[np.float64]:
    gains: NDArray[np.float64] = (ranks <= 10) / np.log2(ranks + 1)
    return gains


def _resampled(
    differences: NDArray[np.float64], owners: NDArray[np.intp], resamples: int, seed: int
) -> NDArray[np.float64]:
    """Mean difference of each resample of users with replacement (resamples,)."""
    if not len(differences):
        return np.zeros(1)
    sums, sizes = np.bincount(owners, differences), np.bincount(owners)
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(len(sums), np.full(len(sums), 1 / len(sums)), resamples)  # (resamples, users)
    means: NDArray[np.float64] = (drawn @ sums) / (drawn @ sizes)
    return means
