"""The command `recstream forget`."""

import asyncio
from typing import Annotated

import typer

from streams import options
from streams.console import print_json, progress_bar, say
from streams.settings import load_settings


def forget(
    users: Annotated[list[str], typer.Argument(metavar="USER...", help="user ids, as in the events")],
    wait: Annotated[bool, typer.Option("--wait", help="wait for the receipts and print them")] = False,
    trainer: Annotated[bool, typer.Option(help="with --wait: wait for the trainer's receipts too")] = True,
    timeout: Annotated[float, typer.Option(min=0.1, help="with --wait: seconds to wait at most")] = 120.0,
    json: options.Json = False,
    brokers: options.Brokers = None,
    partitions: options.Partitions = None,
) -> None:
    """Erase users: their state, its copies on disk, and their events in the trainer's replay buffer.

    Sends a message on forget-users; workers and trainer answer on forgotten-users when it is done. Events that come
    later are a new user's. What it does not cover is told in docs/security.md.

    Example: `recstream forget u196 --wait`
    """
    settings = load_settings(brokers=brokers, partitions=partitions)
    from streams.forget import forget as ask
    from streams.forget_requests import BOTH

    wait_for = (BOTH if trainer else BOTH[:1]) if wait else ()
    if wait_for:
        with progress_bar("receipts", len(users) * len(wait_for)) as bar:
            asked = asyncio.run(ask(settings, users, wait_for, timeout, bar.to))
    else:
        asked = asyncio.run(ask(settings, users))
    for one in asked:
        user = one.user
        if not one.receipts:
            say(f"{user}: asked, forget-users/{one.partition} at {one.offset}")
        for by, message in one.receipts.items():
            say(f"{user}: {by}: " + (f"{message['events_removed']:,} events" if message["found"] else "not known"))
    if json:
        print_json(
            {
                "requests": [
                    {
                        "user_id": one.user,
                        "partition": one.partition,
                        "offset": one.offset,
                        "receipts": list(one.receipts.values()),
                    }
                    for one in asked
                ]
            }
        )
