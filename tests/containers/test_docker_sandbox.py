"""Docker sandboxes: the protocol, the same observations as the local sandbox, and hostile programs held."""

from __future__ import annotations

import pickle
import time

import pytest
from common import FILES, HOSTILE, OF_ROOT, PATIENT_S, TASK

from dagger_nb import scaffold
from dagger_nb.errors import SandboxError
from dagger_nb.records import Action
from dagger_nb.sandboxes import Sandbox, SandboxFactory
from dagger_nb.sandboxes.containers.container import FILE_BYTES


@pytest.fixture
def sandbox(factory):
    with factory.open(TASK) as opened:
        yield opened


def said(sandbox: Sandbox, command: str) -> str:
    return sandbox.run(command, PATIENT_S).output


# --- the protocol -----------------------------------------------------------------------------------------


def test_protocol_and_pickling(factory, sandbox):
    assert isinstance(sandbox, Sandbox)
    opened: SandboxFactory = factory
    assert {"network", "files", "memory", "processes", "environment"} <= opened.guarantees().keys()
    with pickle.loads(pickle.dumps(factory)) as other, other.open(TASK) as second:
        assert said(second, "echo here") == "here"


@pytest.mark.parametrize(
    "command",
    [
        "ls -la; ls sums; pwd; id -un; umask",
        "python -m pytest -q",
        "pytest tests/test_core.py::test_scale",
        "git status; git log; git diff; git rev-parse HEAD",
        "grep -rn add . --include=*.py; find . -name '*.py'",
        "sed -i s/-/+/ sums/core.py && git diff && git commit -qam fix && git log --oneline",
        "python -c 'import sums.nothing'",
        "cat no_such_file; echo $HOME $LANG $COLUMNS; date +%Z; exit 3",
        "echo out; echo err >&2; echo out",
        "python -c 'print(hash(\"x\"), object())'",
        "kill -9 $$",
        "exit 300",
        "sleep 100 & echo done",
        "yes | head -c 100000",
    ],
)
def test_a_command_is_observed_as_in_the_local_sandbox(sandbox, local, command):
    with local.open(TASK) as other:
        expected, found = other.run(command, PATIENT_S), sandbox.run(command, PATIENT_S)
        assert found == expected
        assert sandbox.diff() == other.diff()


def test_what_a_command_leaves_the_next_one_finds(sandbox):
    said(sandbox, "echo 1 > new.txt; git add new.txt; git commit -qm new")
    assert said(sandbox, "cat new.txt; git log --oneline | wc -l") == "1\n2"


@pytest.mark.parametrize("path", ["sums/core.py", "/testbed/sums/core.py", "./sums//core.py"])
def test_both_forms_of_a_path_are_read_and_written(sandbox, path):
    assert sandbox.read(path) == FILES["sums/core.py"]
    sandbox.write(path, "héllo\n")
    assert said(sandbox, "cat sums/core.py") == "héllo"


OUTSIDE = ["/etc/passwd", "../x", "sums/../../x", "/testbedx/a", "a\0b", "out/passwd", "loop", "up"]


@pytest.mark.parametrize("path", OUTSIDE)
def test_paths_that_lead_outside_are_refused(sandbox, path):
    said(sandbox, "ln -s /etc out; ln -s loop loop; ln -s ../tmp/x up")
    with pytest.raises(PermissionError):
        sandbox.read(path)
    with pytest.raises(PermissionError):
        sandbox.write(path, "x")


def test_what_is_wrong_is_said_as_python_says_it(sandbox):
    with pytest.raises(FileNotFoundError):
        sandbox.read("nothing.py")
    for folder in ("sums", "/testbed", ""):
        with pytest.raises(IsADirectoryError):
            sandbox.read(folder)
        with pytest.raises(IsADirectoryError):
            sandbox.write(folder, "x")
    with pytest.raises(NotADirectoryError):
        sandbox.write("README.md/x", "x")
    with pytest.raises(PermissionError):
        sandbox.write(".git/hooks/pre-commit", "x")
    with pytest.raises(OSError, match="too long"):
        sandbox.write("n" * 300, "x")
    said(sandbox, "mkfifo pipe")
    with pytest.raises(PermissionError):
        sandbox.read("pipe")
    assert sandbox.diff() == ""


def test_writing_makes_folders_follows_links_and_keeps_modes(sandbox):
    said(sandbox, "chmod +x README.md; ln -s sums s")
    sandbox.write("deep/er/file.txt", "")
    sandbox.write("README.md", "x" * 300_000)
    sandbox.write("s/core.py", "x = 1\n")
    seen = said(sandbox, "test -x README.md && wc -c < README.md; cat sums/core.py; ls deep/er")
    assert seen == "300000\nx = 1\nfile.txt"


def test_the_patch_has_new_changed_and_removed_files_and_no_ignored_ones(sandbox):
    said(sandbox, "rm README.md; echo x > new.py; echo y > noise.log; sed -i s/-/+/ sums/core.py")
    patch = sandbox.diff()
    assert [line for line in patch.split("\n") if line.startswith("diff")] == [
        f"diff --git a/{path} b/{path}" for path in ("README.md", "new.py", "sums/core.py")
    ]


@pytest.mark.parametrize(
    "command",
    ["rm -rf .git", "git add -A; git commit -qm x", "git checkout -q --orphan y; git rm -rqf --cached .",
     "rm -rf .git; git init -q; touch .git/index.lock", "echo broken > .git/HEAD", "git stash -qu; git stash pop -q"],
)  # fmt: skip
def test_nothing_done_to_git_changes_the_patch(sandbox, command):
    said(sandbox, f"sed -i s/-/+/ sums/core.py; echo x > new.py; {command}")
    patch = sandbox.diff()
    assert "+    return a + b" in patch and "b/new.py" in patch and patch.count("diff --git") == 2


def test_the_patch_takes_files_that_are_no_text(sandbox, local):
    command = r"printf '\377\000\n' > blob; printf 'caf\351\n' > latin.txt"
    said(sandbox, command)
    with local.open(TASK) as other:
        other.run(command)
        assert sandbox.diff() == other.diff() != ""


def test_a_file_that_is_no_utf_8_is_neither_shown_nor_edited(sandbox, local):
    """Written back, its other lines would have changed too."""
    with local.open(TASK) as other:
        for each in (sandbox, other):
            each.run(r"printf 'caf\351 = 1\nx = 1\n' > latin.py")
            arguments = {"command": "str_replace", "path": "latin.py", "old_str": "x = 1", "new_str": "x = 2"}
            seen = scaffold.execute(Action("", "str_replace_editor", arguments), each)
            assert seen == "ERROR: latin.py is not text"
        assert sandbox.diff() == other.diff() != ""


def test_a_closed_sandbox_is_gone(factory, client):
    opened = factory.open(TASK)
    opened.close()
    opened.close()
    for use in (lambda: opened.run("true"), lambda: opened.read("README.md"), opened.diff):
        with pytest.raises(SandboxError, match="closed"):
            use()


def test_odd_commands_are_answered(sandbox):
    assert sandbox.run("echo a\0b").exit_code == 126
    assert sandbox.run("echo " + "x" * 200_000).exit_code == 126
    assert sandbox.run("").exit_code == 0
    assert said(sandbox, "cat") == ""  # its input is empty


# --- limits -----------------------------------------------------------------------------------------------

HEART = "setsid nohup bash -c 'while :; do echo beat >> /testbed/heart; sleep 0.05; done' > /dev/null 2>&1 &"


def beats(sandbox: Sandbox) -> int:
    return int(said(sandbox, "cat heart | wc -l"))


def still(sandbox: Sandbox) -> bool:
    """Whether the heart has stopped, and had beaten before."""
    first = beats(sandbox)
    time.sleep(0.5)
    return first > 0 and beats(sandbox) == first


def test_at_its_time_limit_a_command_and_all_that_it_started_are_killed(sandbox):
    before = time.monotonic()
    result = sandbox.run(f"{HEART} echo started; sleep 1000", 2.0)
    assert (result.exit_code, result.timed_out) == (124, True)
    assert result.output == "started\n[timed out after 2 s]"
    assert time.monotonic() - before < 60
    assert still(sandbox)


def test_nothing_outlives_its_command(sandbox):
    assert said(sandbox, f"{HEART} sleep 0.5; echo over") == "over"
    assert still(sandbox)
    listed = said(sandbox, "ps -eo comm= 2>/dev/null || ls -d /proc/[0-9]*")
    assert "nohup" not in listed and listed.count("sleep") <= 1


@pytest.mark.parametrize("signal", ["KILL", "STOP", "TERM", "SEGV"])
def test_killing_the_watching_shell_frees_nobody(sandbox, signal):
    result = sandbox.run(f"{HEART} sleep 0.5; kill -{signal} $PPID; sleep 0.5; kill -KILL $$", 5.0)
    assert result.exit_code != 0
    assert still(sandbox)


def test_process_1_cannot_be_killed(sandbox):
    said(sandbox, "kill -KILL 1; kill -STOP 1; kill -TERM 1; kill -INT 1")
    assert said(sandbox, "echo alive") == "alive"


def test_too_much_output_is_cut_off_and_its_writer_killed(sandbox):
    result = sandbox.run("yes", PATIENT_S)
    assert result.truncated and not result.timed_out and result.exit_code == 137
    assert len(result.output) < 20_000 and result.output.endswith("[killed: too much output]")


def test_a_memory_bomb_is_killed_and_the_sandbox_goes_on(sandbox):
    bomb = "x = bytearray(2 << 30); x[::4096] = b'1' * (2 << 18)"
    result = sandbox.run(f'echo kept > note; python -c "{bomb}"', 60)
    assert result.exit_code == 137 and "more than 0.5 GB of memory" in result.output
    assert said(sandbox, "cat note") == "kept"


def test_a_fork_bomb_is_held_and_the_sandbox_goes_on(sandbox):
    result = sandbox.run("bomb() { bomb | bomb & }; bomb; sleep 2; ls -d /proc/[0-9]* | wc -l; sleep 60", 8.0)
    assert result.exit_code != 0
    assert said(sandbox, "echo alive; ls -d /proc/[0-9]* | wc -l").split()[0] == "alive"


# --- isolation --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", HOSTILE | OF_ROOT)
def test_a_hostile_program_fails(sandbox, name):
    sandbox.write("evil.py", (HOSTILE | OF_ROOT)[name])
    assert sandbox.run("python evil.py", PATIENT_S).exit_code == 1


def test_who_runs_and_with_which_rights(sandbox):
    status = said(sandbox, "grep -E '^(CapEff|CapBnd|NoNewPrivs|Seccomp):' /proc/self/status; id -u; ls /sys/class/net")
    lines = [line.split()[-1] for line in status.split("\n")]
    assert lines[:5] == ["0" * 16, "0" * 16, "1", "2", "1000"]
    assert lines[5:] == ["lo"]


def test_the_loopback_has_its_names(sandbox):
    """Django's live server, and every test that binds `localhost`, needs them."""
    serve = "import socket; socket.create_server(('localhost', 0)); print(socket.gethostbyname(socket.gethostname()))"
    sandbox.write("serve.py", serve)
    assert said(sandbox, "python serve.py; hostname") == "127.0.0.1\ntestbed"


def test_what_is_too_large_for_a_patch_is_no_failure_of_the_infrastructure(sandbox, caplog):
    sandbox.run("head -c 80M /dev/urandom > big.bin", PATIENT_S)
    assert sandbox.diff() == "" and "more than 32 MB of changes" in caplog.text
    sandbox.run("rm big.bin; echo new > note", PATIENT_S)
    assert "+++ b/note" in sandbox.diff()


def test_a_file_without_end_is_ended(sandbox):
    """Its limit is the daemon's to keep; here it is only asked whether it was set."""
    assert said(sandbox, "ulimit -f") == str(FILE_BYTES // 1024)


def test_the_daemon_was_asked_for_what_the_guarantees_say(factory, client):
    with factory.open(TASK) as opened:
        found = client.api.inspect_container(opened._open.id)["HostConfig"]
    assert not found["Privileged"] and found["NetworkMode"] == "none" and found["CapDrop"] == ["ALL"]
    assert (found["Memory"], found["MemorySwap"], found["PidsLimit"], found["NanoCpus"]) == (5e8, 5e8, 64, 1e9)
    assert found["SecurityOpt"] == ["no-new-privileges"] and not found["Binds"] and not found["CapAdd"]
    assert factory.guarantees()["memory"].startswith("held") == client.info()["MemoryLimit"]
    assert factory.guarantees()["disk"].startswith("NOT held")
