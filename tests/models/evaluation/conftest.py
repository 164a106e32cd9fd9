import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Small products on several threads cost ten times as much."""
    torch.set_num_threads(1)
