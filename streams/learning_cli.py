"""The commands that make models: `fit` once from a table, `trainer` all the time from the stream."""

import os
from typing import Annotated, Literal

import typer

from streams import options
from streams.console import print_json, say
from streams.settings import load_settings


def fit(
    source: options.Source,
    model: Annotated[Literal["gru", "lstm"], typer.Option(help="recurrent cell")] = "gru",
    hidden: Annotated[int, typer.Option(min=1, max=4096, help="width of a user's state")] = 128,
    embedding: Annotated[int, typer.Option(min=1, max=4096, help="width of an item's vector")] = 64,
    epochs: Annotated[int, typer.Option(min=1, help="most passes over the data; it stops when they do not help")] = 12,
    seed: Annotated[int, typer.Option(min=0, help="the same seed and data give the same model")] = 0,
    until: Annotated[
        float, typer.Option(min=0.01, max=1.0, help="fit on this oldest fraction of the events, leave the rest")
    ] = 1.0,
    columns: options.Columns = None,
    types: options.Types = None,
    limit: Annotated[int | None, typer.Option(min=1, help="read only the first N events")] = None,
    device: options.Device = "auto",
    pace: options.Pace = 100.0,
    json: options.Json = False,
    registry: options.Registry = None,
) -> None:
    """Fit a first model on an event log and publish it in the registry; running workers take it up by themselves.

    For example `recstream fit ml-100k --model gru --until 0.5`

    or `recstream fit events.parquet --model lstm --registry s3://models/shop`
    """
    settings = load_settings(registry=registry)
    from models.device import chosen_device
    from streams.datasets import read_source
    from streams.fitting import fit_and_publish

    place = chosen_device(device)  # before minutes of reading
    log = read_source(source, settings, columns, types, limit, pace)
    for remark in log.remarks():
        say(remark)
    summary = fit_and_publish(
        settings,
        log.events,
        cell=model,
        hidden=hidden,
        embedding=embedding,
        epochs=epochs,
        seed=seed,
        until=until,
        device=place,
    )
    metrics = summary["metrics"]
    say(
        f"published {summary['model_version']} in {settings.registry}: {summary['events']:,} events, "
        f"{summary['users']:,} users, {summary['items']:,} items, {summary['seconds']:.0f} s"
    )
    if metrics.get("held_out_events"):
        say(
            f"held-out HR@10 {metrics['hr@10']:.4f}, NDCG@10 {metrics['ndcg@10']:.4f}; "
            f"popularity {metrics['popularity_hr@10']:.4f}, {metrics['popularity_ndcg@10']:.4f}"
        )
    if json:
        print_json(summary)


def trainer(
    device: options.Device = "auto",
    once: Annotated[bool, typer.Option("--once", help="read to the end, train once, stop")] = False,
    dp: Annotated[bool, typer.Option("--dp", help="differential privacy by user; needs recstream\\[dp]")] = False,
    dp_noise: Annotated[float, typer.Option("--dp-noise", min=1e-9, help="noise over the clipping norm")] = 1.0,
    dp_clip: Annotated[float, typer.Option("--dp-clip", min=1e-9, help="largest norm of a user's gradient")] = 0.1,
    dp_users: Annotated[int, typer.Option("--dp-users", min=1, help="users expected in a step")] = 256,
    json: options.Json = False,
    brokers: options.Brokers = None,
    registry: options.Registry = None,
    state_dir: options.StateDir = None,
    partitions: options.Partitions = None,
    http_port: Annotated[int | None, typer.Option("--http-port", help="port of metrics and health")] = None,
) -> None:
    """Learn: read the same events as the workers, fine-tune the model, publish it when it is not worse.

    Trains after RECSTREAM_TRAIN_EVERY_EVENTS new events, after RECSTREAM_TRAIN_EVERY_MINUTES, and at once when the
    serving model's hit rate falls abruptly. Without a model it fits a first one. One trainer serves all workers; stop
    it with Ctrl-C or TERM, kill it if you must: it goes on where it was. With `--dp` the weights tell little about any
    one user; epsilon is published beside each version and as recstream_trainer_epsilon.

    Example: `recstream trainer --brokers kafka:9092 --registry s3://models/shop`
    """
    settings = load_settings(
        brokers=brokers, registry=registry, state_dir=state_dir, partitions=partitions, trainer_http_port=http_port
    )
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):  # read when numpy and torch are imported
        os.environ.setdefault(name, str(settings.trainer_threads))
    from streams.logs import set_up
    from streams.trainer import TrainerOptions, run_trainer

    set_up(settings)
    privacy = None
    if dp:
        from models.private import PrivacySettings

        privacy = PrivacySettings(dp_noise, dp_clip, dp_users)
    summary = run_trainer(settings, TrainerOptions(device, once, privacy))
    if json:
        print_json(summary)
