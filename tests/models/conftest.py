from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from models.learner import Learner
from models.network import Network, NetworkConfig
from models.serving import ServingModel
from models.version import Version
from state.replay_buffer import ReplayBuffer
from tests.models.learning import a_buffer, learner_in, stream

Build = Callable[..., tuple[Network, Version]]


@pytest.fixture(scope="session")
def build_version() -> Build:
    """A network with weights large enough to matter, and the version of it a registry would load."""

    def build(
        cell: str = "gru",
        hidden: int = 8,
        embedding: int = 5,
        vocabulary: list[str] | None = None,
        seed: int = 0,
        fingerprint: int = 77,
    ) -> tuple[Network, Version]:
        words = vocabulary if vocabulary is not None else ["", *(f"i{n}" for n in range(30))]
        config = NetworkConfig(
            items=len(words), cell="lstm" if cell == "lstm" else "gru", hidden=hidden, embedding=embedding
        )
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            network = Network(config).eval()
            for name, parameter in network.named_parameters():
                nn.init.normal_(parameter, std=0.4 if name.startswith("cell") else 0.8)
        version = Version(
            name=f"v0001-{fingerprint:08x}", number=1, fingerprint=fingerprint, config=config, vocabulary=words,
            weights=network.state_dict(), metrics={}, lineage={},
        )  # fmt: skip
        return network, version

    return build


@pytest.fixture(scope="module")
def gru(build_version):
    return ServingModel.from_version(build_version()[1])


@pytest.fixture(scope="module")
def lstm(build_version):
    return ServingModel.from_version(build_version("lstm", 6, 4, fingerprint=78)[1])


@pytest.fixture
def begun(tmp_path: Path) -> Iterator[tuple[Learner, ReplayBuffer]]:
    with a_buffer(tmp_path / "buffer", stream(1_500)) as buffer:
        yield learner_in(tmp_path), buffer
