"""The GPUs that this process may use, as nvidia-smi names them; nothing is started on them."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass

from dagger_nb.errors import EnvironmentProblem

ORDER = ("CUDA_DEVICE_ORDER", "PCI_BUS_ID")  # for the environment of whatever starts CUDA
_QUERY = ["--query-gpu=name,memory.total,driver_version", "--format=csv,noheader,nounits"]


@dataclass(frozen=True, slots=True)
class LocalGpu:
    """One GPU: its name, its memory in bytes, and the driver's version."""

    name: str
    bytes: float
    driver: str


def gpus_hidden() -> bool:
    """Whether CUDA_VISIBLE_DEVICES admits none."""
    return os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")


def local_gpus() -> list[LocalGpu]:
    """The GPUs that CUDA_VISIBLE_DEVICES admits, all where it is not set; none where there is no nvidia-smi.

    Numbers in it are nvidia-smi's where CUDA counts by PCI_BUS_ID, which `ORDER` asks for.

    Raises:
        EnvironmentProblem: nvidia-smi is there and fails, as with a driver that does not fit.
    """
    program = shutil.which("nvidia-smi")
    if program is None or gpus_hidden():
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    try:
        chosen = [] if visible is None else ["--id", visible]
        done = subprocess.run([program, *_QUERY, *chosen], capture_output=True, text=True, timeout=60, check=True)
        rows = [[part.strip() for part in line.split(",")] for line in done.stdout.splitlines() if line.strip()]
        return [LocalGpu(name, float(mebibytes) * 2**20, driver) for name, mebibytes, driver in rows]
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        words = str(getattr(error, "stdout", "") or error).strip()
        step = f"correct CUDA_VISIBLE_DEVICES={visible}, or repair" if visible else "repair"
        raise EnvironmentProblem(f"nvidia-smi fails ({words}); {step} the NVIDIA driver") from error
