"""The commands `recstream topics`."""

import asyncio

import typer
from rich.table import Table

from streams import options
from streams.console import EXIT_FAILURE, print_json, say, screen
from streams.settings import load_settings

app = typer.Typer(no_args_is_help=True, help="Create the Kafka topics, or show how they are.")


@app.command("create")
def create(
    brokers: options.Brokers = None,
    partitions: options.Partitions = None,
    replication: options.Replication = None,
) -> None:
    """Create the topics that are missing; what is there already stays as it is.

    A topic that is there with another partition count is an error: partition numbers decide where a user's state is.

    Example: `recstream topics create --brokers kafka:9092 --partitions 16 --replication 3`
    """
    from streams.topics import create_topics

    states = create_topics(load_settings(brokers=brokers, partitions=partitions, replication=replication))
    made = sum(state.created for state in states)
    say(f"{made} topics created, {len(states) - made} were there")


@app.command("describe")
def describe(
    brokers: options.Brokers = None, partitions: options.Partitions = None, json: options.Json = False
) -> None:
    """Show partitions, replication, compaction and size of every topic; exit status 1 when one is not as it must be.

    Example: `recstream topics describe`
    """
    from streams.topics import count_records, describe_topics

    settings = load_settings(brokers=brokers, partitions=partitions)
    states = describe_topics(settings)
    records = asyncio.run(count_records(settings, states))
    table = Table("topic", "partitions", "replication", "cleanup", "records", box=None)
    for state in states:
        table.add_row(
            state.spec.name,
            str(state.partitions),
            str(state.replication),
            state.cleanup or "-",
            f"{records.get(state.spec.name, 0):,}",
        )
    if json:
        screen().print(table)
        print_json(
            {
                "topics": {
                    state.spec.name: {
                        "partitions": state.partitions,
                        "replication": state.replication,
                        "cleanup": state.cleanup,
                        "records": records.get(state.spec.name, 0),
                        "problem": state.problem,
                    }
                    for state in states
                }
            }
        )
    else:
        from rich.console import Console

        Console(highlight=False).print(table)
    for state in states:
        if state.problem:
            say(f"{state.spec.name} {state.problem}; fix: {state.fix}", style="red")
    if any(state.problem for state in states):
        raise typer.Exit(EXIT_FAILURE)
