"""Seconds and peak memory of work on a GPU or a CPU, where that was, and the file that keeps what was measured."""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

GIB = 2**30
CPU = torch.device("cpu")
LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes")


class Meter:
    """Seconds and peak memory of work on one device: those of the GPU, or this process's on a CPU."""

    def __init__(self, device: torch.device) -> None:
        self._gpu = device.type == "cuda"

    def seconds(self, work: Callable[[], Any]) -> float:
        if not self._gpu:
            start = time.process_time()
            work()
            return time.process_time() - start
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        work()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1000

    def reset(self) -> None:
        """Give back what is free, and begin to look for a new peak."""
        gc.collect()
        if self._gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        elif sys.platform == "linux":
            ctypes.CDLL(None).malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5")

    def memory(self) -> dict[str, float | None]:
        """GiB since the last reset: tensors, and what was taken from the GPU for them; or the process's resident set.

        On a CPU only Linux tells.
        """
        if self._gpu:
            taken = torch.cuda.max_memory_reserved() / GIB
            return {"peak_gib": torch.cuda.max_memory_allocated() / GIB, "reserved_gib": taken}
        if sys.platform != "linux":
            return {"peak_gib": None}
        resident = Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]
        return {"peak_gib": int(resident) / 2**20}

    def repeat(self, work: Callable[[], Any], seconds: float) -> list[float]:
        """Times of at least two and at most twenty runs, that take about `seconds` together."""
        times: list[float] = []
        while len(times) < 2 or (sum(times) < seconds and len(times) < 20):
            times.append(self.seconds(work))
        return times


def matmul_tflops(device: torch.device, meter: Meter) -> float:
    """Rate of a large product of random matrices: bf16 on a GPU, fp32 on a CPU."""
    size, dtype = (8192, torch.bfloat16) if device.type == "cuda" else (768, torch.float32)
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    meter.seconds(lambda: left @ right)
    return 2 * size**3 / statistics.median(meter.seconds(lambda: left @ right) for _ in range(20)) / 1e12


def environment(device: torch.device, libraries: Sequence[str] = LIBRARIES) -> dict[str, Any]:
    found = {"python": platform.python_version(), "versions": {name: version(name) for name in libraries}}
    if device.type == "cpu":
        machine = {"machine": platform.machine(), "cpus": os.cpu_count()}
        return {"device": "cpu", **machine, "threads": torch.get_num_threads(), **found}
    memory = round(torch.cuda.get_device_properties(device).total_memory / GIB)
    return {"device": torch.cuda.get_device_name(device), "memory_gib": memory, "cuda": torch.version.cuda, **found}


def save(options: argparse.Namespace, libraries: Sequence[str] = LIBRARIES, **found: Any) -> None:
    """Write what was found on a CPU to `options.json`, with the options and where that was; to None, nothing."""
    if options.json is None:
        return
    given = {name: value for name, value in vars(options).items() if name != "json"}
    report = {"options": given, "environment": environment(CPU, libraries), **found}
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(report, indent=1) + "\n")
