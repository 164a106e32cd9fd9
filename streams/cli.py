"""The command `recstream`."""

import asyncio
import os
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from streams import evaluate_cli, forget_cli, learning_cli, models_cli, options, topics_cli, tune_cli
from streams.console import EXIT_FAILURE, drop_output, exit_status, print_json, progress_bar, say
from streams.settings import load_settings


class _Commands(TyperGroup):
    """Gives every command the same errors and exit codes: 0 done, 1 failed, 2 usage or settings, 130 interrupted."""

    def invoke(self, ctx: Any) -> Any:
        try:
            with exit_status():
                return super().invoke(ctx)
        except BrokenPipeError:  # the reader of our output is gone, as in `recstream tail | head`
            drop_output()
            raise typer.Exit(EXIT_FAILURE) from None


app = typer.Typer(
    name="recstream",
    cls=_Commands,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="Recommendations from a stream of clicks, views and purchases, fresh after every event.\n\n"
    "`recstream demo` shows everything at once with a broker of its own. With a Kafka of yours: `recstream doctor`, "
    "`recstream topics create`, `recstream fit`, `recstream worker`, `recstream replay`, `recstream tail`.\n\n"
    "Settings are environment variables `RECSTREAM_<NAME>` or lines in .env; options of a command go before both.",
)
app.add_typer(topics_cli.app, name="topics")
app.add_typer(models_cli.app, name="models")


@app.command()
def demo(
    events: Annotated[
        int | None, typer.Option(min=1, help="end after this many events with a summary; without it: until Ctrl-C")
    ] = None,
    speed: Annotated[
        float | None, typer.Option(min=1e-9, help="factor on the data's own clock; without it: a steady rate")
    ] = None,
    json: options.Json = False,
    registry: options.Registry = None,
    state_dir: options.StateDir = None,
    http_port: options.HttpPort = None,
    partitions: options.Partitions = None,
    top_k: options.TopK = None,
    emit: options.Emit = None,
) -> None:
    """Run everything at once: broker, worker, a first model, and MovieLens-100K replayed live.

    Starts an embedded broker, fits a GRU on the oldest part of the data, then replays the rest and shows events per
    second, latency, the live hit rate against popularity, and recommendations by title. Nothing to install or to
    configure; the data (5 MB) is downloaded once.

    Example: `recstream demo --events 20000 --json`
    """
    settings = load_settings(
        registry=registry, state_dir=state_dir, http_port=http_port, partitions=partitions, top_k=top_k, emit=emit
    )
    from streams.demo import run_demo

    run_demo(settings=settings, events=events, speed=speed, json=json)


@app.command()
def broker(
    port: Annotated[int, typer.Option(min=0, max=65535, help="TCP port; 0 takes a free one")] = 9092,
    host: Annotated[str, typer.Option(help="address to listen on and to advertise")] = "127.0.0.1",
) -> None:
    """Run the embedded Kafka-compatible broker until Ctrl-C. It keeps everything in memory: for trying things out.

    Prints its address as the only line of standard output.

    Example: `recstream broker --port 9092`
    """
    from streams.broker import run_broker

    raise typer.Exit(run_broker(port, host))


@app.command()
def worker(
    workers: Annotated[int, typer.Option(min=1, max=1024, help="processes to run and keep running on this host")] = 1,
    index: Annotated[int | None, typer.Option(min=0, hidden=True)] = None,
    brokers: options.Brokers = None,
    registry: options.Registry = None,
    state_dir: options.StateDir = None,
    http_port: options.HttpPort = None,
    partitions: options.Partitions = None,
    top_k: options.TopK = None,
    emit: options.Emit = None,
) -> None:
    """Serve: read events, advance each user's state, write recommendations. Stop it with Ctrl-C or TERM.

    One process uses one core. `--workers N` runs N of them, restarts what dies and stops all cleanly; workers on
    other hosts join by themselves. Without a model in the registry it recommends by transitions and popularity and
    switches to the first model as soon as there is one.

    Example: `recstream worker --workers 4 --brokers kafka:9092 --registry s3://models/shop`
    """
    settings = load_settings(
        brokers=brokers,
        registry=registry,
        state_dir=state_dir,
        http_port=http_port,
        partitions=partitions,
        top_k=top_k,
        emit=emit,
    )
    if workers == 1 or index is not None:
        for name in (
            "OPENBLAS_NUM_THREADS",
            "OMP_NUM_THREADS",
        ):  # read when numpy and torch are imported: one core each
            os.environ.setdefault(name, "1")
        from streams.worker import run_worker

        run_worker(settings, index or 0)
    else:
        from streams.supervisor import supervise

        raise typer.Exit(supervise(settings, workers))


@app.command()
def replay(
    source: options.Source,
    speed: Annotated[
        float | None, typer.Option(min=1e-9, help="factor on the log's own clock (1: as it happened)")
    ] = None,
    rate: Annotated[float | None, typer.Option(min=1e-3, help="events per second")] = None,
    columns: options.Columns = None,
    types: options.Types = None,
    limit: Annotated[int | None, typer.Option(min=1, help="send only the first N events")] = None,
    pace: options.Pace = 100.0,
    json: options.Json = False,
    brokers: options.Brokers = None,
    partitions: options.Partitions = None,
) -> None:
    """Send an event log to the input topics, in time order: as fast as Kafka takes it, or paced.

    The file needs the columns user_id and item_id; timestamp (epoch seconds or milliseconds, or ISO 8601) and
    event_type (click, view, purchase) when it has them. A file without types is all clicks; rows of other types are
    skipped and counted.

    For example `recstream replay events.csv.gz --columns user_id=uid,timestamp=ts --types pv=views,buy=purchases`

    or `recstream replay ml-100k --rate 5000`
    """
    if speed is not None and rate is not None:
        message = "choose --speed or --rate, not both"
        raise typer.BadParameter(message)
    settings = load_settings(brokers=brokers, partitions=partitions)
    from streams.datasets import read_source
    from streams.replay import produce_catalogue, produce_events
    from streams.topics import require_topics

    require_topics(settings)
    log = read_source(source, settings, columns, types, limit, pace)
    events, skipped = log.events, sum(log.events.skipped.values())
    for note in log.notes:
        say(note)
    if log.titles:
        asyncio.run(produce_catalogue(settings, log.titles))
    with progress_bar("replay", len(events), "events") as bar:
        done = asyncio.run(produce_events(settings, events, rate=rate, speed=speed, on_progress=bar.to))
    say(
        f"{done.events:,} events in {done.seconds:.1f} s, {done.events_per_second:,.0f} events/s; "
        f"{skipped:,} rows skipped" + "".join(f"; {reason}: {rows:,}" for reason, rows in events.skipped.items())
    )
    if json:
        print_json(
            {
                "events": done.events,
                "skipped": dict(events.skipped),
                "seconds": round(done.seconds, 3),
                "events_per_second": round(done.events_per_second, 1),
                "bytes": done.bytes,
            }
        )


app.command()(learning_cli.fit)
app.command()(learning_cli.trainer)
app.command()(evaluate_cli.evaluate)
app.command()(tune_cli.tune)
app.command()(forget_cli.forget)


@app.command()
def tail(
    user: Annotated[str | None, typer.Option(help="only this user's")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="end after N messages")] = None,
    since: Annotated[
        Literal["latest", "earliest"], typer.Option("--from", help="new messages only, or all that are kept")
    ] = "latest",
    brokers: options.Brokers = None,
    partitions: options.Partitions = None,
) -> None:
    """Print recommendations as they come, by title where the topic `items` has one.

    For example `recstream tail --user 196`

    or `recstream tail --from earliest --limit 10`
    """
    settings = load_settings(brokers=brokers, partitions=partitions)
    from streams.tail import follow

    asyncio.run(follow(settings, user=user, limit=limit, earliest=since == "earliest"))


@app.command()
def doctor(
    json: options.Json = False,
    brokers: options.Brokers = None,
    registry: options.Registry = None,
    state_dir: options.StateDir = None,
    http_port: options.HttpPort = None,
    partitions: options.Partitions = None,
) -> None:
    """Check everything a worker needs: versions, broker, topics, model, disk, port; say how to cure what is wrong.

    Exit status 1 when a check fails; a warning does not fail.

    Example: `recstream doctor --brokers kafka:9092`
    """
    from streams.doctor import examine, report

    settings = load_settings(
        brokers=brokers, registry=registry, state_dir=state_dir, http_port=http_port, partitions=partitions
    )
    checks = examine(settings)
    report(checks, json)
    if any(check.status == "fail" for check in checks):
        raise typer.Exit(EXIT_FAILURE)


def main() -> None:
    """Entry point of the command `recstream`."""
    app(prog_name="recstream")


if __name__ == "__main__":
    main()
