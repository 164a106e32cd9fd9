"""Where to train: on a GPU where there is one."""

import torch

from state.errors import RecstreamError


def chosen_device(wanted: str) -> str:
    """``cuda`` where it was asked for, or ``auto`` was and there is one; else ``cpu``.

    Raises:
        RecstreamError: CUDA was asked for and is not there.
    """
    if wanted == "cuda" and not torch.cuda.is_available():
        what, fix = "There is no CUDA device", "Use --device cpu, or a CUDA build of torch on a machine with a GPU"
        raise RecstreamError(what, f"torch {torch.__version__} sees none", fix)
    return "cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu"
