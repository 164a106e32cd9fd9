"""The command line all baselines share. Standard library only: one of them runs in another virtual environment."""

import argparse
from dataclasses import dataclass
from pathlib import Path

INPUTS = ("clicks", "views", "purchases")
STATE_BYTES = 768


@dataclass(frozen=True)
class Arguments:
    """Where to read, where to write, which model."""

    brokers: str
    output: str
    group: str
    partitions: int
    version: Path
    state_dir: Path


def parse(description: str | None) -> Arguments:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--brokers", required=True, help="host:port")
    parser.add_argument("--output", required=True, help="topic of the answers")
    parser.add_argument("--group", required=True, help="consumer group")
    parser.add_argument("--partitions", type=int, default=8, help="partitions of every topic")
    parser.add_argument("--version", type=Path, required=True, help="directory of a published model version")
    parser.add_argument("--state-dir", type=Path, required=True, help="scratch directory")
    return Arguments(**vars(parser.parse_args()))
