"""Command options shared by several commands. A setting `RECSTREAM_<NAME>` that is one is called `--<name>`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

_SETTINGS = "Settings (also RECSTREAM_<NAME> in the environment or in .env)"

Brokers = Annotated[
    str | None,
    typer.Option("--brokers", help="Kafka bootstrap servers, host:port,host:port", rich_help_panel=_SETTINGS),
]
Registry = Annotated[
    str | None,
    typer.Option("--registry", help="model registry: a directory or any fsspec URL", rich_help_panel=_SETTINGS),
]
StateDir = Annotated[
    Path | None,
    typer.Option("--state-dir", help="local snapshots and the cold store", rich_help_panel=_SETTINGS),
]
HttpPort = Annotated[
    int | None,
    typer.Option(
        "--http-port", help="metrics and health; worker i listens on this port + i", rich_help_panel=_SETTINGS
    ),
]
Partitions = Annotated[
    int | None,
    typer.Option(
        "--partitions",
        help="partitions of every input, output and changelog topic (choose once: users cannot move)",
        rich_help_panel=_SETTINGS,
    ),
]
TopK = Annotated[int | None, typer.Option("--top-k", help="recommendations per message", rich_help_panel=_SETTINGS)]
Emit = Annotated[
    str | None,
    typer.Option(
        "--emit",
        help="every-event: one message per event; latest: the newest per user of each batch",
        rich_help_panel=_SETTINGS,
    ),
]
Replication = Annotated[
    int | None,
    typer.Option("--replication", help="replication factor of topics to create", rich_help_panel=_SETTINGS),
]

Device = Annotated[
    Literal["auto", "cpu", "cuda"],
    typer.Option("--device", help="where neural models are trained; auto: on CUDA where there is one"),
]
Json = Annotated[bool, typer.Option("--json", help="print one JSON object as the last line of standard output")]

Source = Annotated[
    str,
    typer.Argument(
        metavar="FILE|ml-100k",
        help="CSV, TSV, JSON lines or Parquet, plain or compressed; or ml-100k, which is downloaded once",
        show_default=False,
    ),
]
Columns = Annotated[
    str | None,
    typer.Option("--columns", help="other column names: user_id=uid,item_id=sku,timestamp=ts,event_type=action"),
]
Types = Annotated[
    str | None,
    typer.Option("--types", help="values of event_type to topics: pv=views,fav=clicks,buy=purchases"),
]
Items = Annotated[
    Path | None,
    typer.Option("--items", help="table of the items: item_id, title, category, ... (found beside DATA if there)"),
]
Limit = Annotated[int | None, typer.Option("--limit", min=1, help="read only the first N events, by time")]
Pace = Annotated[float, typer.Option("--pace", min=1e-6, help="events per second of a file that has no times")]
