import pytest
import torch

from models.device import chosen_device
from models.family.course import placed
from state.errors import RecstreamError


@pytest.mark.parametrize(("there", "wanted", "found"), [
    (False, "auto", "cpu"), (False, "cpu", "cpu"), (True, "auto", "cuda"), (True, "cuda", "cuda"), (True, "cpu", "cpu"),
])  # fmt: skip
def test_a_gpu_is_taken_where_there_is_one(
    monkeypatch: pytest.MonkeyPatch, there: bool, wanted: str, found: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    assert chosen_device(wanted) == found


def test_cuda_where_there_is_none_is_refused_with_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RecstreamError, match=r"no CUDA device.*--device cpu"):
        chosen_device("cuda")


def test_a_module_is_elsewhere_only_within() -> None:
    module = torch.nn.Linear(2, 2)
    with placed(module, "meta"):  # the other device that every machine has; nothing can be moved back from it
        assert module.weight.device.type == torch.zeros(1).device.type == "meta"
        module.to_empty(device="cpu")
    assert module.weight.device.type == "cpu"
    assert torch.zeros(1).device.type == "cpu"


def test_a_module_is_brought_back_when_training_fails() -> None:
    module = torch.nn.Linear(2, 2)
    with pytest.raises(ValueError, match="diverged"), placed(module, "meta"):
        module.to_empty(device="cpu")
        raise ValueError("diverged")
    assert torch.zeros(1).device.type == module.weight.device.type == "cpu"
