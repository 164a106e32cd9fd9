"""The command `tune`: better settings of one model for one log, found on its validation events within a time budget."""

from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any, Final, Literal

import orjson
import typer
from rich.table import Table

from streams import options
from streams.console import Bar, ended_as_by_ctrl_c, print_json, progress_bar, say, screen
from streams.evaluate_cli import one_thread, read_log
from streams.settings import SettingsError, load_settings

_SHOWN: Final = 8  # best trials in the table


def tune(
    data: options.Source,
    model: Annotated[
        str, typer.Option(help="skip-markov, bpr, rnn, lstm, gru, time-lstm, transformer, bert or fusion")
    ] = "gru",
    minutes: Annotated[float, typer.Option(min=0.01, help="time for the search")] = 10.0,
    trials: Annotated[int | None, typer.Option(min=1, help="most trials, those of earlier searches included")] = None,
    protocol: Annotated[
        Literal["leave-one-out", "time-split"], typer.Option(help="says which events are for validation")
    ] = "leave-one-out",
    effort: Annotated[float, typer.Option(min=0.01, max=100, help="factor on the training budget of a trial")] = 0.5,
    seed: Annotated[int, typer.Option(min=0, help="randomness of the search and of every fit")] = 0,
    study: Annotated[
        Path | None,
        typer.Option(help="file of the search, which goes on with it (one in the state directory)"),
    ] = None,
    columns: options.Columns = None,
    types: options.Types = None,
    items: options.Items = None,
    limit: options.Limit = None,
    device: options.Device = "auto",
    out: Annotated[Path | None, typer.Option(help="write the best settings here, for `evaluate --settings`")] = None,
    json: options.Json = False,
) -> None:
    """Search for the settings with which a model ranks the validation events best; the test events are never looked at.

    The first trial is the defaults. Ctrl-C ends the search with the best so far, and the same command goes on with it.

    For example `recstream tune ml-100k --model gru --minutes 20 --out best.json`

    and then `recstream evaluate ml-100k --models gru --settings best.json`
    """
    one_thread()
    _require_optuna()
    from models.device import chosen_device
    from models.evaluation.tuning import GOAL, Search, tune

    place = chosen_device(device)
    log = read_log(data, columns, types, items, limit)
    folder = load_settings().state_dir / "tune"
    file = study or folder / f"{log.name}.{model}.{protocol}.{effort:g}.{seed}.journal"
    search = Search(model, protocol, perf_counter, file, 60 * minutes, trials, effort, seed, place)
    with progress_bar(f"tuning {model}", total=1.0) as bar, ended_as_by_ctrl_c():
        body = tune(log, search, _Shown(bar, perf_counter, 60 * minutes, trials).show)
    screen().print(_table(body, GOAL))
    best, default = body["best"], body["default"]
    say(f"best on {body['validation_events']:,} validation events: {_named(best['settings'])}, {GOAL} {best[GOAL]:.4f}")
    say(f"  defaults {default[GOAL]:.4f}; {len(body['trials'])} trials, kept in {body['study']}")
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_bytes(orjson.dumps({model: best["settings"]}, option=orjson.OPT_INDENT_2) + b"\n")
        say(f"  for `recstream evaluate --settings`: {out}")
    if json:
        print_json(body)


class _Shown:
    """The progress of a search: its share of the time or of the trials; Ctrl-C ends it."""

    def __init__(self, bar: Bar, clock: Callable[[], float], seconds: float, trials: int | None) -> None:
        self._bar, self._clock, self._seconds, self._trials = bar, clock, seconds, trials
        self._begun = clock()

    def show(self, number: int, share: float, best: float | None, note: str) -> None:
        done = (self._clock() - self._begun) / self._seconds
        if self._trials is not None:
            done = max(done, (number + share) / self._trials)
        so_far = "" if best is None else f", best {best:.4f}"
        self._bar.to(min(done, 1.0), note=f"trial {number + 1}{so_far}: {note}")


def _table(body: dict[str, Any], goal: str) -> Table:
    table = Table(title=f"{body['model']} on {body['data']['name']}: the best of {len(body['trials'])} trials")
    table.add_column("trial", justify="right")
    table.add_column(goal, justify="right")
    table.add_column("settings")
    for trial in sorted(body["trials"], key=lambda trial: -trial[goal])[:_SHOWN]:
        table.add_row(str(trial["trial"]), f"{trial[goal]:.4f}", _named(trial["settings"]))
    return table


def _named(settings: dict[str, Any]) -> str:
    shown = (
        f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}" for name, value in settings.items()
    )
    return ", ".join(shown) or "the defaults"


def _require_optuna() -> None:
    from importlib.util import find_spec

    if find_spec("optuna") is None:
        what, why = "tune needs optuna", "it is not installed"
        raise SettingsError(what, why, "pip install 'recstream[tune]'")
