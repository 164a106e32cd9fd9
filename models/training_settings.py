"""How networks are trained: the settings, and those that ranked best for fits and for passes of the stream."""

from dataclasses import dataclass, replace
from typing import Final


@dataclass(frozen=True, slots=True)
class TrainingSettings:
    """How a network is trained.

    Attributes:
        learning_rate: Peak of AdamW's rate, after a linear warm-up and before a cosine down to 0.
        warmup: Share of all updates that warm up.
        weight_decay: AdamW's decay of matrices; vectors (biases) have none.
        window: T, most steps of a window.
        batch_steps: Most steps of a batch, padding included.
        batches: Fewest batches of an epoch: a small data set gets smaller batches rather than few updates.
        item_dropout: Share of input items replaced by the unknown item, so that its embedding is worth something.
        clip: Largest norm of the gradient.
        sampled_above: Item rows above which the softmax is sampled.
        negatives: Negatives of a sampled softmax.
        bfloat16: Run the forward pass under bfloat16 autocast; None: on CUDA where that is faster.
        compiler: Backend of torch.compile for the scores and their loss, empty for none; None: inductor on CUDA where
            that is faster.
        averaged: Share of the running average of weights that an update keeps. The average is the result, and the
            rate stays at its peak: one pass goes on where the last one ended. 0: no average, the rate falls to 0.
    """

    learning_rate: float = 0.01
    warmup: float = 0.04
    weight_decay: float = 0.01
    window: int = 100
    batch_steps: int = 1600
    batches: int = 30
    item_dropout: float = 0.05
    clip: float = 1.0
    sampled_above: int = 20_000
    negatives: int = 4096
    bfloat16: bool | None = None
    compiler: str | None = None
    averaged: float = 0.0


# What the stream's models are fitted with. A network of this size lacks updates, and on a core small batches cost
# little more than large ones: 5 epochs in batches of 400 steps ranked as well as 9 to 14 in batches of 1,600, on three
# logs. Windows of 25 steps, which start from the true state, ranked as well as 100 and more of them stand side by side.
SMALL_BATCHES: Final = TrainingSettings(window=25, batch_steps=400)
# A pass by itself over what is new to a network.
ONE_PASS: Final = replace(SMALL_BATCHES, learning_rate=0.005, warmup=0.1)
# One of many passes (`models.average`): the average is over about 250 updates, three or four passes of 20,000 events.
# Batches of 400 steps at a rate of 0.002 ranked a little worse for a third more time, those of 1,600 at 0.004 alike.
PASS_AFTER_PASS: Final = replace(SMALL_BATCHES, batch_steps=800, learning_rate=0.003, warmup=0.1, averaged=0.996)
