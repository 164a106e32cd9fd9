"""The demo's live view: figures, versions, what the trainer does, and some users' newest lists by title."""

import time
from typing import Final

from rich.console import Group
from rich.table import Table

from streams.demo_watch import Watch
from streams.tail import line

_SHOWN_VERSIONS: Final = 5


def table(watch: Watch) -> Group:
    """The whole view."""
    return Group(
        _figures(watch),
        "",
        _versions(watch),
        trainer_line(watch),
        "",
        *(line(message, watch.titles) for message in watch.users.values()),
    )


def trainer_line(watch: Watch) -> str:
    """What the trainer does, in a sentence."""
    found = {name.removeprefix("recstream_trainer_"): value for (name, _), value in watch.trainer.items()}
    if not found:
        return "trainer: starting"
    outcomes = ", ".join(
        f"{value:.0f} {result}"
        for (name, result), value in watch.trainer.items()
        if name == "recstream_trainer_versions_total"
    )
    held = f"{found.get('buffer_events', 0):,.0f} events in its buffer"
    if found.get("training"):
        doing = f"training, {100 * found.get('progress', 0):.0f}% of the pass, loss {found.get('loss', 0):.3f}"
    else:
        doing = "waiting for new events"
    return f"trainer: {doing}; {held}; versions: {outcomes}"


def _figures(watch: Watch) -> Table:
    p50, p99 = watch.latency_ms()
    hit_rate, popularity = watch.hit_rates()
    figures = Table(box=None, pad_edge=False)
    for name in ("events", "events/s", "p50 ms", "p99 ms", "live HR@10", "popularity HR@10", "invalid"):
        figures.add_column(name, justify="right")
    figures.add_row(
        f"{watch.answered:,}",
        f"{watch.events_per_second():,.0f}",
        f"{p50:,.1f}",
        f"{p99:,.1f}",
        f"{hit_rate:.4f}",
        f"{popularity:.4f}",
        str(watch.invalid),
    )
    return figures


def _versions(watch: Watch) -> Table:
    shown = Table(box=None, pad_edge=False)
    shown.add_column("version", no_wrap=True)
    for name in ("serves since s", "from event", "recommendations", "live HR@10"):
        shown.add_column(name, justify="right")
    for name, served in list(watch.versions.items())[-_SHOWN_VERSIONS:]:
        serving = name == watch.model_version
        shown.add_row(
            f"[bold green]{name}[/]" if serving else name,
            f"{time.monotonic() - served.first_seen:,.0f}" if serving else "",
            f"{served.after_events:,}",
            f"{served.recommendations:,}",
            f"{watch.hit_rate_of(name):.4f}",
        )
    return shown
