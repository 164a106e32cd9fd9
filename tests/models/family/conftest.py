from collections.abc import Callable

import pytest
import torch

from models.family.interface import SequenceModel
from tests.models.family.walks import fitted


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Small products on several threads cost ten times as much."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def model_of() -> Callable[[str], SequenceModel]:
    """Fitted models by name, each fitted once."""
    made: dict[str, SequenceModel] = {}

    def of(name: str) -> SequenceModel:
        if name not in made:
            made[name] = fitted(name)
        return made[name]

    return of
