"""vLLM on this machine: find it, give it the right weights, start it, swap adapters, stop it.

Covered: one server, one base, one adapter at a time, GPU and CPU builds, an interpreter of vLLM's own.
Not covered: several GPUs for one model, several machines.
"""

from __future__ import annotations

from dagger_nb.serving.engine import BASE, Engine, ServedModel, find_engine
from dagger_nb.serving.roles import at, student_server, teacher_server
from dagger_nb.serving.server import Server
from dagger_nb.serving.weights import served_folder

__all__ = [
    "BASE",
    "Engine",
    "ServedModel",
    "Server",
    "at",
    "find_engine",
    "served_folder",
    "student_server",
    "teacher_server",
]
