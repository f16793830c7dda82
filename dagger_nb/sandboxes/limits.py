"""What one command may use."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from dagger_nb.errors import ConfigError

READ_FACTOR = 64  # a command that prints more than this many times the output limit is killed
MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one command and of the tree it leaves. All are positive.

    `memory_mb` (MiB) holds for each process, and for all of a command's processes together where a
    cgroup is to be had; `processes` likewise. `cpu_s` counts per process. `disk_mb` is the tree's
    size in whole pages, and the size of /tmp. Output beyond `output_bytes` loses its middle.
    """

    memory_mb: int = 512
    processes: int = 64
    wall_s: float = 10.0
    cpu_s: int = 8
    disk_mb: int = 16
    output_bytes: int = 16384
    files: int = 5000

    def __post_init__(self) -> None:
        for item in dataclasses.fields(self):
            if not getattr(self, item.name) > 0:
                raise ConfigError(f"Limits.{item.name} must be positive, not {getattr(self, item.name)!r}")

    @property
    def disk(self) -> int:
        return self.disk_mb * MIB

    def within(self, timeout_s: float | None) -> Limits:
        """These limits with another wall-clock time; a longer one raises the CPU time in proportion."""
        if timeout_s is None or timeout_s == self.wall_s:
            return self
        scale = max(1.0, timeout_s / self.wall_s)
        return dataclasses.replace(self, wall_s=timeout_s, cpu_s=math.ceil(self.cpu_s * scale))

    def settings(self) -> bytes:
        """The numbers in the order of `supervisor.SETTINGS`."""
        read = self.output_bytes * READ_FACTOR
        wall_ms = math.ceil(self.wall_s * 1000)
        values = (self.memory_mb * MIB, self.processes, self.cpu_s, wall_ms, self.disk, read, self.files)
        return b" ".join(b"%d" % value for value in values)
