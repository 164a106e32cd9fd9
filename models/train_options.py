"""What `python -m models.train` can be told."""

import os
from argparse import ArgumentParser, ArgumentTypeError, BooleanOptionalAction, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence
from typing import Final

from models.private import PrivacySettings

SERVING: Final = "serving"
NOTHING: Final = "nothing"

_DESCRIPTION: Final = """\
Train a model on a table of events or on a trainer's sample, judge it, and publish it in a registry.

  python -m models.train events.csv.gz --registry data/registry
  torchrun --nproc-per-node 4 -m models.train events.parquet --from nothing --epochs 12

EVENTS is a table (CSV, TSV, JSON lines, Parquet, plain or compressed, with user_id, item_id and best timestamp and
event_type; --columns and --types as for `recstream fit`), or a sample that `recstream trainer` put on disk
(pass/sample.replay in its directory). Every rank reads it whole: about 30 bytes of memory per event and rank.

It fine-tunes the version that serves, or begins anew where none does. A run that was killed goes on from its
checkpoint when it is started again with the same arguments, on as many ranks or on others. The newest tenth of what the
parent does not know (at most 5,000 events) is not trained on: there the candidate is compared with the serving version,
and it is promoted unless it is worse."""


def _whole(least: int) -> Callable[[str], int]:
    """A whole number of at least so much."""

    def whole(text: str) -> int:
        if (value := int(text)) < least:
            what = f"{text} is below {least}"
            raise ArgumentTypeError(what)
        return value

    return whole


def _share(text: str) -> float:
    """A number from 0 to below 1."""
    if not 0 <= (value := float(text)) < 1:
        what = f"{text} is not a share from 0 to below 1"
        raise ArgumentTypeError(what)
    return value


def _rate(text: str) -> float:
    """A number above 0."""
    if not 0 < (value := float(text)) < float("inf"):
        what = f"{text} is not a number above 0"
        raise ArgumentTypeError(what)
    return value


def parse(argv: Sequence[str] | None) -> Namespace:
    """The arguments; wrong ones end the program with status 2."""
    parser = ArgumentParser(
        "python -m models.train", description=_DESCRIPTION, formatter_class=RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("events", metavar="EVENTS", help="a table, or a trainer's sample (.replay)")
    registry = os.environ.get("RECSTREAM_REGISTRY") or "data/registry"
    add(
        "--registry",
        default=registry,
        help="directory or fsspec URL (default: $RECSTREAM_REGISTRY, else data/registry)",
    )
    add(
        "--from",
        dest="parent",
        default=SERVING,
        metavar="serving|nothing|VERSION",
        help="the version to fine-tune; nothing begins anew (default: %(default)s)",
    )
    add("--columns", help="other column names: user_id=uid,timestamp=ts")
    add("--types", help="values of event_type to topics: pv=views,buy=purchases")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="CUDA where there is one (default)")
    add("--threads", type=_whole(1), default=1, help="CPU threads of each rank (default: %(default)s)")
    add("--seed", type=_whole(0), default=0, help="the same seed, data and parent give the same model on one machine")
    add("--checkpoint", default="data/train/checkpoint.pt", help="kept until published (default: %(default)s)")
    add("--checkpoint-batches", type=_whole(1), default=100, help="batches between two (default: %(default)s)")
    add("--no-promote", action="store_true", help="publish only; `recstream models promote` lets it serve")
    add("--json", action="store_true", help="print the result as one JSON object on the last line")
    shape = parser.add_argument_group("network made from nothing")
    shape.add_argument("--cell", choices=("gru", "lstm"))
    shape.add_argument("--hidden", type=_whole(1), help="width of a user's state")
    shape.add_argument("--embedding", type=_whole(1), help="width of an item's vector")
    shape.add_argument("--dropout", type=_share, help="share of inputs and outputs zeroed")
    training = parser.add_argument_group("training")
    training.add_argument("--epochs", type=_whole(1), help="passes over the events")
    training.add_argument("--learning-rate", type=_rate, help="its peak")
    training.add_argument("--window", type=_whole(1), help="most steps of a training window")
    training.add_argument("--batch-steps", type=_whole(1), help="most steps of a batch, over all ranks")
    training.add_argument("--item-dropout", type=_share, help="share of input items replaced by the unknown one")
    training.add_argument("--bfloat16", action=BooleanOptionalAction, help="bfloat16 autocast (default: on CUDA)")
    training.add_argument("--compiler", help="backend of torch.compile, '' for none (default: inductor on CUDA)")
    private, default = parser.add_argument_group("differential privacy"), PrivacySettings()
    private.add_argument("--dp", action="store_true", help="private by user; needs recstream[dp]")
    private.add_argument("--dp-noise", type=float, default=default.noise, help="noise multiplier (%(default)s)")
    private.add_argument("--dp-clip", type=float, default=default.clip, help="norm of a user's gradient (%(default)s)")
    private.add_argument("--dp-users", type=int, default=default.users_per_step, help="users a step (%(default)s)")
    return parser.parse_args(argv)
