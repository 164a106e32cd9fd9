"""Differentially private training (DP-SGD) in which the unit of privacy is a user with everything they did.

A step takes each user with probability q, computes the gradient of each taken user's mean loss over all of their
windows, clips it to norm C, adds the clipped gradients up, adds Gaussian noise of standard deviation sigma C to every
coordinate, and divides by the expected number of users. Whoever sees the weights learns little about whether any one
user was there: that much is epsilon, by opacus's accountant, at a given delta.

opacus's own gradient samplers do not fit this network, see docs/decisions/0006-private-training.md.

What epsilon covers is the weights. The vocabulary is taken for public, and the figures published beside a version
(losses, the gate's findings) are exact.

References:
    Abadi et al., "Deep learning with differential privacy", CCS 2016; McMahan et al., "Learning differentially private
    recurrent language models", ICLR 2018 (the user as the unit); Mironov et al., "Renyi differential privacy of the
    sampled Gaussian mechanism", 2019 (the accountant).
"""

import secrets
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from models.network import RECENT, UNKNOWN_ROW, Network
from models.objective import NextItemLoss
from models.passes import Pass
from models.sequences import Histories, batch, cut, recent_items
from models.training import Trainer
from models.training_settings import TrainingSettings
from state.errors import RecstreamError
from state.replay_sample import Sample

Spent = list[tuple[float, float, int]]
"""Noise multiplier, sampling rate and number of steps of each training, oldest first."""

_LARGEST_SHARE: Final = 0.5  # of the users in one step; beyond it sampling hardly helps privacy


@dataclass(frozen=True, slots=True)
class PrivacySettings:
    """How private a training is.

    Attributes:
        noise: Sigma, standard deviation of the noise over C.
        clip: C, largest norm of one user's gradient; a little below the usual one (0.15 on MovieLens-100K).
        users_per_step: Users expected in a step; at most half of all are.
        delta: Probability with which epsilon may fail; None: 1e-5, or a tenth of one over the users where that is less.
        seed: For tests. Noise that can be drawn again protects nobody: None draws a secret one.

    Raises:
        RecstreamError: A value is out of range.
    """

    noise: float = 1.0
    clip: float = 0.1
    users_per_step: int = 256
    delta: float | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        good = self.noise > 0 and self.clip > 0 and self.users_per_step >= 1 and 0 < (self.delta or 0.5) < 1
        if not good:
            what, fix = "These privacy settings cannot be used", "Give noise, clip and users above 0, delta below 1"
            raise RecstreamError(what, str(self), fix)


class PrivateTrainer(Trainer):
    """As `models.training.Trainer`, with differential privacy by user.

    An epoch has as many steps as it takes to draw every user once on average. Ranks share the users of each step and
    add the same noise.

    Args:
        network: The network, on the device to train on. It must not depend on the data, but for its vocabulary.
        epochs: Number of epochs the schedule is laid out for.
        seed: Randomness of dropout; that of sampling and noise is secret.
        settings: How to train; its batch sizes and gradient clipping give way to those of `privacy`.
        privacy: How private.
    """

    def __init__(
        self, network: Network, epochs: int, seed: int, settings: TrainingSettings, privacy: PrivacySettings
    ) -> None:
        public = np.zeros(network.config.items, np.int64)  # negatives are drawn evenly: counts would tell of users
        super().__init__(network, public, epochs, seed, settings)
        self.privacy = privacy
        secret = self.ranks.from_first(secrets.randbits(62) if privacy.seed is None else privacy.seed)
        self._order = np.random.default_rng(secret)
        self._noise = torch.Generator(self._device).manual_seed(secret ^ 0x5DEECE66D)
        self._steps, self._users = 0, 0
        accountant()

    @property
    def users(self) -> int:
        """Users there were to draw from."""
        return self._users

    @property
    def spent(self) -> Spent:
        """What the accountant needs to know of the steps made so far."""
        return [(self.privacy.noise, self._rate(self._users), self._steps)] if self._steps else []

    def state(self) -> dict[str, Any]:
        """As `Trainer.state`, the noise generator and the count of steps included."""
        mine = {"noise": self._noise.get_state(), "steps": self._steps, "users": self._users}
        return super().state() | {"private": mine}

    def restore(self, state: dict[str, Any]) -> None:
        """As `Trainer.restore`."""
        super().restore(state)
        noise = state["private"]["noise"]
        if len(noise) == len(self._noise.get_state()):
            self._noise.set_state(noise)
        else:  # of another kind of device; noise that was used before must not come again
            self._noise.manual_seed(self.ranks.from_first(secrets.randbits(62)))
        self._steps, self._users = state["private"]["steps"], state["private"]["users"]

    def _rate(self, users: int) -> float:
        return min(self.privacy.users_per_step / max(users, 1), _LARGEST_SHARE)

    def _plan(self, source: Histories, wanted: NDArray[np.bool_] | None, order: Any, *, advance: bool = False) -> Pass:
        """Batches of all windows of the users drawn for a step; one that draws nobody is made all the same."""
        rng = self._order if advance else np.random.default_rng()
        if not advance:
            rng.bit_generator.state = order
        windows = cut(source.starts, self.settings.window, None)
        self._users = int((np.diff(source.starts) > 1).sum())
        rate = self._rate(self._users)
        bounds = np.searchsorted(_owners(source, windows), np.arange(self._users + 1))  # windows of each user
        batches = []
        for _ in range(max(1, round(1 / rate))):
            # As many as independent draws with this rate would give, each set of them equally likely.
            drawn = rng.choice(self._users, rng.binomial(self._users, rate), replace=False)
            parts = [np.arange(bounds[user], bounds[user + 1]) for user in drawn]
            batches.append(np.concatenate([np.zeros(0, np.int64), *parts]))
        return Pass(windows, batches)

    def _update(
        self, source: Histories, windows: NDArray[np.int64], wanted: NDArray[np.bool_] | None, states: Tensor
    ) -> tuple[float, int]:
        parameters = list(self.network.parameters())
        sums = [torch.zeros_like(parameter) for parameter in parameters]
        total, learnt = 0.0, 0
        owners = _owners(source, windows) if len(windows) else np.zeros(0, np.int64)
        for user in range(self.ranks.rank, int(owners.max(initial=-1)) + 1, self.ranks.ranks):
            mine = np.flatnonzero(owners == user)
            loss, targets = self._gradients(source, windows[mine], wanted, states[torch.from_numpy(mine)], sums)
            total, learnt = total + loss * targets, learnt + targets
        learnt = int(sum(self.ranks.gathered(learnt)))
        expected = self._rate(self._users) * self._users
        for parameter, summed in zip(parameters, sums, strict=True):
            noise = torch.randn(summed.shape, generator=self._noise, device=self._device)
            clipped = self.ranks.summed(summed)
            parameter.grad = (clipped + self.privacy.noise * self.privacy.clip * noise) / expected
        self._optimizer.step()
        self._steps += 1
        return total / max(learnt, 1), learnt

    def _gradients(
        self,
        source: Histories,
        windows: NDArray[np.int64],
        wanted: NDArray[np.bool_] | None,
        states: Tensor,
        sums: list[Tensor],
    ) -> tuple[float, int]:
        """Add one user's clipped gradient to the sums; the user's mean loss and number of targets."""
        data = batch(source, windows, wanted)
        count = int((data.targets != 0).sum())
        if not count:
            return 0.0, 0
        rows = np.flatnonzero((data.targets != 0).any(1))  # the others have nothing to teach
        columns = (data.items, data.kinds, data.gaps_seconds, data.targets)
        inputs = (torch.from_numpy(part[rows]).to(self._device) for part in columns)
        places = windows[rows, :1] + 1 + np.arange(data.items.shape[1])  # (W, T) where the targets stand
        recent = torch.from_numpy(recent_items(source, places[data.targets[rows] != UNKNOWN_ROW], RECENT))
        loss = self._bare()(*inputs, states[torch.from_numpy(rows)].to(self._device), recent.to(self._device), count)
        gradients = torch.autograd.grad(loss, list(self.network.parameters()), materialize_grads=True)
        norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
        scale = (self.privacy.clip / (norm + 1e-12)).clamp(max=1.0)
        for summed, gradient in zip(sums, gradients, strict=True):
            summed.add_(gradient * scale)
        return loss.item(), count

    def _bare(self) -> NextItemLoss:
        """The loss without DDP, which would average gradients before they are clipped."""
        module = self._objective.module if isinstance(self._objective, DistributedDataParallel) else self._objective
        return cast(NextItemLoss, module)


def without_events(sample: Sample) -> Sample:
    """The sample's vocabulary alone, for what a private training starts from: no counts, nobody's company."""
    nobody = np.zeros(0, np.int32)
    never, counts = np.zeros(0, np.int64), np.zeros_like(sample.item_counts)
    return replace(sample, users=nobody, items=nobody, times_ms=never, item_counts=counts)


def account(trainer: PrivateTrainer, rival: str | None, lineage: Mapping[str, Any]) -> dict[str, Any]:
    """What has been spent on a line of versions, for the lineage of the newest.

    Args:
        trainer: The training that made it.
        rival: The version it follows, None for a first one.
        lineage: That version's lineage; what it says was spent is added, as its weights came from the same users.

    Returns:
        ``spent`` (see `Spent`), ``epsilon``, ``delta``, ``clip``, and ``since``: the version before the first private
        one, whose training is not covered, None when all are.
    """
    before: Mapping[str, Any] = lineage.get("privacy", {})
    spent = [(float(noise), float(rate), int(steps)) for noise, rate, steps in before.get("spent", [])]
    spent += trainer.spent
    settings = trainer.privacy
    delta = settings.delta or min(1e-5, 0.1 / max(trainer.users, 1))
    return {
        "epsilon": round(epsilon(spent, delta), 4),
        "delta": delta,
        "clip": settings.clip,
        "spent": [list(part) for part in spent],
        "since": before.get("since") if before else rival,
    }


def epsilon(spent: Spent, delta: float) -> float:
    """Epsilon of several trainings on the same users together, by Renyi differential privacy.

    Raises:
        RecstreamError: opacus is not installed.

    Example:
        >>> round(epsilon([(1.0, 0.01, 100)], 1e-5), 2)
        1.21
    """
    spending = accountant()
    spending.history = list(spent)
    with warnings.catch_warnings():  # it warns where the best order is the largest it tried: still an upper bound
        warnings.simplefilter("ignore")
        return float(spending.get_epsilon(delta)) if spent else 0.0


def accountant() -> Any:
    """A new accountant of opacus, which adds up what trainings spend.

    Raises:
        RecstreamError: opacus is not installed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from opacus.accountants import RDPAccountant
    except ImportError as error:
        what, fix = "Private training needs the package opacus", "pip install 'recstream[dp]'"
        raise RecstreamError(what, str(error), fix) from error
    return RDPAccountant()


def _owners(source: Histories, windows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Whose windows these are (W,): numbers from 0, users in the order they come in."""
    users = np.searchsorted(source.starts, windows[:, 0], side="right")
    owners: NDArray[np.int64] = np.unique(users, return_inverse=True)[1]
    return owners
