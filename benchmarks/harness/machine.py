"""What a figure was measured on."""

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any, Final

import psutil  # type: ignore[import-untyped]

from benchmarks.harness.broker import Broker
from benchmarks.harness.processes import Cores

_PACKAGES: Final = ("faust-streaming", "aiokafka", "torch", "numpy", "numba", "orjson", "uvloop")


def describe(broker: Broker, cores: Cores) -> dict[str, Any]:
    """The computer, broker and placement."""
    return computer() | {
        "broker": broker.name,
        "placement": f"measured process on core {cores.measured}, broker and loader on {cores.others}",
    }


def computer() -> dict[str, Any]:
    """CPU, cores, memory, versions and how busy the machine was at the start."""
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
        "load_average_1m": round(os.getloadavg()[0], 2),
    }


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    features = next((line for line in lines if line.startswith("flags")), "")
    name = named[0] if named else platform.processor()
    return f"{name} (AVX-512)" if "avx512f" in features else name
