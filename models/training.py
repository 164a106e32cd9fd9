"""One pass after another over users' windows: loss, optimiser, schedule. First fits and fine-tuning share it."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from models.average import Average, Carried
from models.network import RECENT, UNKNOWN_ROW, Network
from models.objective import Beside, NextItemLoss
from models.passes import Pass, initial_states, lay_out
from models.ranks import Ranks
from models.sequences import Histories, batch, recent_items
from models.softmax import Sampler
from models.training_settings import TrainingSettings

Report = Callable[[float, float], bool]


class Trainer:
    """Trains a network in place, one epoch at a time.

    Within a `torch.distributed` group every rank trains on its share of each batch's windows; gradients are averaged,
    so all ranks hold the same network, the one a single process would get but for dropout's randomness.

    Args:
        network: The network, on the device to train on.
        counts: How often each item row occurs (V,): what negatives are drawn by.
        epochs: Number of epochs the schedule is laid out for; may be a fraction.
        seed: Randomness of windows, order, dropout and negatives; the same seed gives the same network on one machine.
        settings: How to train.
        beside: What is minimised together with the loss of the next item.
        carried: Where an earlier pass left off, for a network whose weights are that pass's average; used where the
            settings have an average.
    """

    def __init__(
        self,
        network: Network,
        counts: NDArray[np.int64],
        epochs: float,
        seed: int,
        settings: TrainingSettings,
        beside: Beside | None = None,
        carried: Carried | None = None,
    ) -> None:
        self.network, self.settings, self.epochs = network, settings, epochs
        self._device = network.item_bias.device
        self._order = np.random.default_rng(seed)
        self.ranks = Ranks.present()
        self._torch_state = torch.Generator(self._device).manual_seed(seed + 7919 * self.ranks.rank).get_state()
        matrices = [parameter for parameter in network.parameters() if parameter.ndim > 1]
        vectors = [parameter for parameter in network.parameters() if parameter.ndim == 1]
        self._optimizer = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
            lr=settings.learning_rate,
        )
        self._average: Average | None = None
        self._goes_on = False  # from where an earlier pass left off: there is nothing to warm up
        if settings.averaged:
            self._average = Average(network, settings.averaged, None if carried is None else carried.ages)
            if carried is not None:
                self._go_on(carried)
        sampler = None
        if network.config.items > settings.sampled_above:
            sampler = Sampler.of(torch.from_numpy(counts).to(self._device), settings.negatives)
        objective = self.objective = NextItemLoss(
            network,
            sampler,
            settings.item_dropout,
            bfloat16=settings.bfloat16,
            compiler=settings.compiler,
            beside=beside,
        )
        self._objective: nn.Module = DistributedDataParallel(objective) if self.ranks.ranks > 1 else objective
        self._begun: _Begun | None = None
        self._finished = 0  # epochs

    def epoch(self, source: Histories, report: Report, wanted: NDArray[np.bool_] | None = None) -> float:
        """Train on every wanted transition once; go on where `restore` left off.

        Args:
            source: The histories.
            report: Called after each batch with the share of the epoch done and its mean loss (over this rank's share
                of the targets); True ends the epoch, and all ranks must say the same.
            wanted: (N,) which events to learn; the others only lead to the state before them. None learns all.

        Returns:
            Mean loss of the epoch's targets, NaN when there were none.
        """
        begun = self._begun or self._begin(source, wanted)
        self._begun = begun
        plan = self._plan(source, wanted, begun.order)
        self.network.train()
        with self._randomness():
            while begun.batches < len(plan.batches):
                self._schedule((self._finished + begun.batches / len(plan.batches)) / self.epochs)
                windows = plan.batches[begun.batches]
                loss, targets = self._update(source, plan.windows[windows], wanted, begun.states[windows])
                begun.loss, begun.targets = begun.loss + loss * targets, begun.targets + targets
                begun.batches += 1
                if report(begun.batches / len(plan.batches), self.ranks.ranks * begun.loss / max(begun.targets, 1)):
                    break
        self.network.eval()
        self._begun, self._finished = None, self._finished + 1
        return self._everywhere(begun)

    def state(self) -> dict[str, Any]:
        """Everything needed to go on from here in other processes; may be asked for within `report`, by all ranks."""
        begun = self._begun
        random = self._torch_state
        if begun is not None:
            random = torch.get_rng_state() if self._device.type == "cpu" else torch.cuda.get_rng_state(self._device)
        return {
            "network": self.network.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "order": json.dumps(self._order.bit_generator.state),
            "random": self.ranks.gathered(random),
            "average": None if self._average is None else self._average.state(),
            "finished": self._finished,
            "begun": None
            if begun is None
            else {
                "order": json.dumps(begun.order),
                "states": begun.states,
                "batches": begun.batches,
                "loss": self.ranks.gathered(begun.loss),
                "targets": begun.targets,
            },
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from what `state` returned, with the same arguments and histories as then.

        With as many ranks as then the network becomes the very same; with more or fewer, or on another kind of device,
        only dropout's draws differ.
        """
        self.network.load_state_dict(state["network"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._order.bit_generator.state = json.loads(state["order"])
        alike = len(state["random"]) == self.ranks.ranks
        if alike and len(state["random"][self.ranks.rank]) == len(self._torch_state):  # a GPU's generator has its own
            self._torch_state = state["random"][self.ranks.rank]
        if self._average is not None:
            self._average.restore(state["average"])
        self._finished = state["finished"]
        begun = state["begun"]
        self._begun = None
        if begun is not None:
            states = begun["states"].to(self._device)
            losses = begun["loss"] if alike else [sum(begun["loss"])] + [0.0] * (self.ranks.ranks - 1)
            order, loss = json.loads(begun["order"]), losses[self.ranks.rank]
            self._begun = _Begun(order, states, begun["batches"], loss, begun["targets"])

    @property
    def finished(self) -> int:
        """Epochs finished."""
        return self._finished

    def conclude(self) -> Carried | None:
        """After the last epoch: give the network its average.

        Returns:
            Where training stood; None without an average, or when no batch had anything to foretell.
        """
        if self._average is None or not self._optimizer.state:
            return None
        moments = [self._optimizer.state[parameter] for parameter in self.network.parameters()]
        names = [name for name, _ in self.network.named_parameters()]
        trained = {name: weight.detach().cpu().clone() for name, weight in self.network.named_parameters()}
        first, second = (
            {name: moment[kind].cpu() for name, moment in zip(names, moments, strict=True)}
            for kind in ("exp_avg", "exp_avg_sq")
        )
        self._average.serve()
        return Carried(trained, first, second, int(moments[0]["step"]), self._average.ages.cpu())

    def _go_on(self, carried: Carried) -> None:
        self._goes_on = True
        step = torch.tensor(float(carried.steps))
        with torch.no_grad():
            for name, parameter in self.network.named_parameters():
                parameter.copy_(carried.weights[name])
                first, second = (part[name].to(self._device).clone() for part in (carried.first, carried.second))
                self._optimizer.state[parameter] = {"step": step.clone(), "exp_avg": first, "exp_avg_sq": second}

    def _begin(self, source: Histories, wanted: NDArray[np.bool_] | None) -> "_Begun":
        order = self._order.bit_generator.state
        plan = self._plan(source, wanted, order, advance=True)
        # Each rank runs its share of the users; a user's windows follow from one another and stay together.
        users = np.searchsorted(source.starts, plan.windows[:, 0], side="right")
        mine = np.flatnonzero(users % self.ranks.ranks == self.ranks.rank)
        states = torch.zeros((len(plan.windows), self.network.config.state_size), device=self._device)
        states[torch.from_numpy(mine).to(self._device)] = initial_states(self.network, source, plan.windows[mine])
        return _Begun(order, self.ranks.summed(states))

    def _plan(self, source: Histories, wanted: NDArray[np.bool_] | None, order: Any, *, advance: bool = False) -> Pass:
        settings = self.settings
        rng = self._order if advance else np.random.default_rng()
        if not advance:
            rng.bit_generator.state = order
        transitions = int(np.maximum(np.diff(source.starts) - 1, 0).sum() if wanted is None else wanted.sum())
        steps = int(np.clip(transitions // settings.batches, settings.window, settings.batch_steps))
        return lay_out(source, settings.window, steps, rng, wanted)

    def _schedule(self, progress: float) -> None:
        warms = self.settings.warmup and not self._goes_on
        warm = min(1.0, (progress + 1e-3) / self.settings.warmup) if warms else 1.0
        falling = 1.0 if self._average else 0.5 + 0.5 * float(np.cos(np.pi * min(progress, 1.0)))
        rate = self.settings.learning_rate * warm * falling
        for group in self._optimizer.param_groups:
            group["lr"] = rate

    def _update(
        self, source: Histories, windows: NDArray[np.int64], wanted: NDArray[np.bool_] | None, states: Tensor
    ) -> tuple[float, int]:
        data = batch(source, windows, wanted)
        count = int((data.targets != 0).sum())
        if not count:
            return 0.0, 0
        mine = slice(self.ranks.rank, None, self.ranks.ranks)
        inputs = (
            torch.from_numpy(part[mine]).to(self._device)
            for part in (data.items, data.kinds, data.gaps_seconds, data.targets)
        )
        places = windows[mine, :1] + 1 + np.arange(data.items.shape[1])  # (W, T) where the targets stand
        recent = torch.from_numpy(recent_items(source, places[data.targets[mine] != UNKNOWN_ROW], RECENT))
        # DDP averages the ranks' gradients, so each divides its sum by its share of all targets.
        loss = self._objective(
            *inputs, states[mine], recent.to(self._device), count / self.ranks.ranks, torch.from_numpy(places)
        )
        self._optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), self.settings.clip)
        self._optimizer.step()
        if self._average is not None:
            self._average.update()
        return loss.item() / self.ranks.ranks, count  # summed over ranks at the end of the epoch

    def _everywhere(self, begun: "_Begun") -> float:
        """The epoch's mean loss over all ranks."""
        if not begun.targets:
            return float("nan")
        total = self.ranks.summed(torch.tensor([begun.loss], dtype=torch.float64, device=self._device))
        return total.item() / begun.targets

    @contextmanager
    def _randomness(self) -> Iterator[None]:
        """Torch's generator, which dropout uses, follows this trainer's seed and is given back as it was."""
        cuda = self._device.type == "cuda"
        with torch.random.fork_rng(devices=[self._device] if cuda else []):
            if cuda:
                torch.cuda.set_rng_state(self._torch_state, self._device)
            else:
                torch.set_rng_state(self._torch_state)
            yield
            self._torch_state = torch.cuda.get_rng_state(self._device) if cuda else torch.get_rng_state()


@dataclass(slots=True)
class _Begun:
    """An epoch under way: the order generator's state before it, each window's initial state, and how far it is."""

    order: Any
    states: Tensor  # (W, S)
    batches: int = 0
    loss: float = 0.0
    targets: int = 0
