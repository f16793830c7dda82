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

# What no user of a container may do, its root included.
HOSTILE = {
    "network": "import socket; socket.create_connection(('1.1.1.1', 53), 3)",
    "name server": "import socket; socket.getaddrinfo('example.org', 80)",
    "docker socket": "open('/var/run/docker.sock')",
    "raw disk": "import os; os.mknod('/tmp/disk', 0o60600, os.makedev(8, 0)); open('/tmp/disk', 'rb').read(1)",
    "kernel memory": "open('/dev/mem', 'rb').read(1)",
    "kernel settings": "open('/proc/sys/kernel/hostname', 'w').write('x')",
    "sysrq": "open('/proc/sysrq-trigger', 'w').write('h')",
    "mount": "import ctypes, os; l = ctypes.CDLL(None, use_errno=True); "
    "os._exit(0) if l.mount(b'none', b'/tmp', b'tmpfs', 0, None) == 0 else exit(1)",
    "user namespace as root": "import os, ctypes; l = ctypes.CDLL(None, use_errno=True); "
    "os._exit(0) if l.unshare(0x10000000 | 0x00020000) == 0 else exit(1)",
    "other processes": "import os; exit(len([p for p in os.listdir('/proc') if p.isdigit()]) < 8)",
}

# And what the user of a task that brings its files may not.
OF_ROOT = {"become root": "import os; os.setuid(0)", "own the root": "open('/etc/evil', 'w')"}
