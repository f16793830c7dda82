"""What several of these tests share: the limits of their containers, and a small task."""

from __future__ import annotations

from dagger_nb.records import Task
from dagger_nb.settings import SandboxSettings
from dagger_nb.tasks.git import commit_hash

SETTINGS = SandboxSettings(back_end="docker", cpus=1.0, memory_gb=0.5, processes=64)
PATIENT_S = 120.0  # of a command, on a busy machine

FILES = {
    ".gitignore": "*.log\n",
    "README.md": "# Sums\n",
    "sums/__init__.py": "",
    "sums/core.py": "def add(a, b):\n    return a - b\n\n\ndef scale(a, k):\n    return a * k\n",
    "tests/test_core.py": "from sums.core import add, scale\n\n\ndef test_add():\n    assert add(2, 3) == 5\n\n\n"
    "def test_scale():\n    assert scale(2, 3) == 6\n",
}
TASK = Task("sums-1", "dagger-nb/sums", commit_hash(FILES), "", "", "", (), (), "1", "", "", "", "", FILES)
