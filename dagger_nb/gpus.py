"""The GPUs of this machine, as nvidia-smi names them; nothing is started on them."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass

from dagger_nb.errors import EnvironmentProblem

_QUERY = ["--query-gpu=name,memory.total,driver_version", "--format=csv,noheader,nounits"]


@dataclass(frozen=True, slots=True)
class LocalGpu:
    """One GPU: its name, its memory in bytes, and the driver's version."""

    name: str
    bytes: float
    driver: str


def local_gpus() -> list[LocalGpu]:
    """The GPUs of this machine, none where there is no nvidia-smi.

    Raises:
        EnvironmentProblem: nvidia-smi is there and fails, as with a driver that does not fit.
    """
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    try:
        done = subprocess.run([program, *_QUERY], capture_output=True, text=True, timeout=60, check=True)
        rows = [[part.strip() for part in line.split(",")] for line in done.stdout.splitlines() if line.strip()]
        return [LocalGpu(name, float(mebibytes) * 2**20, driver) for name, mebibytes, driver in rows]
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        words = getattr(error, "stdout", "") or error
        raise EnvironmentProblem(f"nvidia-smi fails ({words}); repair the NVIDIA driver") from error
