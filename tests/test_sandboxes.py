"""Sandboxes: files, commands, observations that repeat byte for byte, the cache, and hostile programs held."""

from __future__ import annotations

import base64
import multiprocessing
import os
import pickle
import socket
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dagger_nb.errors import ConfigError, DataError, EnvironmentProblem, SandboxError
from dagger_nb.records import Task
from dagger_nb.sandboxes import Limits, LocalFactory, Sandbox, SandboxFactory, canonical, launch, local_factory, view
from dagger_nb.sandboxes.repository import repository
from dagger_nb.sandboxes.snapshot import Entry, Snapshot
from dagger_nb.sandboxes.supervisor import pack, unpack
from dagger_nb.tasks import generate
from dagger_nb.tasks.git import commit_hash

FILES = {
    "README.md": "# Sums\n\nAdds and scales.\n",
    "sums/__init__.py": "",
    "sums/core.py": "def add(a, b):\n    return a - b\n\n\ndef scale(a, k):\n    return a * k\n",
    "sums/report.py": "from sums.core import add\n\n\ndef total(rows):\n    return sum(add(a, b) for a, b in rows)\n",
    "tests/test_core.py": "from sums.core import add, scale\n\n\ndef test_add():\n    assert add(2, 3) == 5\n\n\n"
    "def test_scale():\n    assert scale(2, 3) == 6\n",
    "tests/test_report.py": "from sums.report import total\n\n\ndef test_total():\n    assert total([(1, 2)]) == 3\n",
}
ISOLATED = ("bubblewrap", "unshare")
QUICK = Limits(wall_s=60.0)  # generous, so that a busy machine changes nothing; tests of time say their own


def make_task(files: dict[str, str] = FILES, base_commit: str = "") -> Task:
    return Task("sums-1", "dagger-nb/sums", base_commit, "", "", "", (), (), "1", "", "", "", "", files)


@pytest.fixture(scope="module", params=ISOLATED)
def isolated(request: pytest.FixtureRequest):
    try:
        factory = local_factory(limits=QUICK, backend=request.param)
    except EnvironmentProblem as problem:
        pytest.skip(str(problem))
    with factory:
        yield factory


@pytest.fixture(scope="module")
def factory():
    with local_factory(limits=QUICK) as factory:
        yield factory


@pytest.fixture
def sandbox(factory: LocalFactory):
    with factory.open(make_task()) as sandbox:
        yield sandbox


# --- files -----------------------------------------------------------------------------------------


def test_protocol(factory, sandbox):
    assert isinstance(sandbox, Sandbox)
    assert factory.name.startswith("local-")
    opened: SandboxFactory = factory
    assert all(isinstance(how, str) for how in opened.guarantees().values())
    assert {"network", "files", "memory", "processes", "environment"} <= opened.guarantees().keys()


@pytest.mark.parametrize("path", ["sums/core.py", "/testbed/sums/core.py", "./sums//core.py"])
def test_read_takes_both_forms_of_a_path(sandbox, path):
    assert sandbox.read(path) == FILES["sums/core.py"]


@pytest.mark.parametrize("path", ["/etc/passwd", "../x", "sums/../../x", "sums/../README.md", "/testbedx/a", "a\0b"])
def test_paths_outside_are_refused(sandbox, path):
    with pytest.raises(PermissionError):
        sandbox.read(path)
    with pytest.raises(PermissionError):
        sandbox.write(path, "x")


def test_read_says_what_is_wrong(sandbox):
    with pytest.raises(FileNotFoundError):
        sandbox.read("nothing.py")
    for folder in ("sums", "/testbed", ""):
        with pytest.raises(IsADirectoryError):
            sandbox.read(folder)


def test_write_is_seen_by_commands_and_back(sandbox):
    sandbox.write("new/deep/file.txt", "héllo\n")
    assert sandbox.run("cat new/deep/file.txt; echo more >> new/deep/file.txt").output == "héllo"
    assert sandbox.read("/testbed/new/deep/file.txt") == "héllo\nmore\n"


def test_write_says_what_is_wrong(sandbox):
    with pytest.raises(IsADirectoryError):
        sandbox.write("sums", "x")
    with pytest.raises(NotADirectoryError):
        sandbox.write("README.md/x", "x")
    with pytest.raises(PermissionError):
        sandbox.write(".git/hooks/pre-commit", "x")
    with pytest.raises(OSError, match="no space"):
        sandbox.write("big", "x" * (17 << 20))
    with pytest.raises(OSError, match="too long"):
        sandbox.write("n" * 300, "x")
    assert sandbox.diff() == ""


def test_links_are_followed_inside_and_refused_outside(sandbox):
    sandbox.run("ln -s sums s; ln -s /testbed/README.md r; ln -s /etc evil; ln -s ../.. up; ln -s loop loop")
    assert sandbox.read("s/core.py") == FILES["sums/core.py"]
    assert sandbox.read("r") == FILES["README.md"]
    sandbox.write("s/core.py", "x = 1\n")
    assert sandbox.run("cat sums/core.py; readlink s").output == "x = 1\nsums"
    for path in ("evil/passwd", "up/etc/passwd", "loop"):
        with pytest.raises(PermissionError):
            sandbox.read(path)
        with pytest.raises(PermissionError):
            sandbox.write(path, "x")


def test_tree_keeps_modes_links_and_empty_folders_between_commands(sandbox):
    sandbox.run("mkdir empty; echo 'echo hi' > run.sh; chmod +x run.sh; ln -s run.sh go; rm -r tests")
    sandbox.run("chmod 000 README.md")
    assert sandbox.run("./go; ls -d empty; head -1 README.md; test -e tests").output == "hi\nempty\n# Sums"
    sandbox.run("touch empty/x; rmdir nothing; rm go")
    assert sandbox.run("ls empty; ls").output == "x\nREADME.md\nempty\nrun.sh\nsums"


def test_closed_sandbox_says_so(factory):
    sandbox = factory.open(make_task())
    sandbox.close()
    sandbox.close()
    for use in (lambda: sandbox.run("true"), lambda: sandbox.read("README.md"), sandbox.diff):
        with pytest.raises(SandboxError, match="closed"):
            use()


def test_open_refuses_a_task_that_it_cannot_hold(factory):
    with pytest.raises(DataError, match="Docker"):
        factory.open(make_task({}))
    with pytest.raises(DataError, match="base_commit"):
        factory.open(make_task(base_commit="0" * 40))
    with pytest.raises(ConfigError, match="disk_mb"):
        factory.open(make_task({"big": "x" * (17 << 20)}))
    with pytest.raises(ConfigError, match="positive"):
        Limits(wall_s=0)
    with pytest.raises(ConfigError, match="bubblewrap"):
        local_factory(backend="docker")


# --- commands --------------------------------------------------------------------------------------


def test_output_is_merged_in_order_and_the_exit_code_is_bashs(sandbox):
    result = sandbox.run("echo one; echo two >&2; echo three; exit 3")
    assert (result.output, result.exit_code, result.timed_out) == ("one\ntwo\nthree", 3, False)
    assert sandbox.run("kill -9 $$").exit_code == 137
    assert sandbox.run("cat; echo $(tty)").output == "not a tty"  # stdin is empty, not a terminal
    assert sandbox.run("exec >&- 2>&-; sleep 0.1; exit 7").exit_code == 7
    assert sandbox.run("yes | head -1").output == "y"  # SIGPIPE is as a shell expects it
    assert sandbox.run("echo a\0b").exit_code == 126
    assert sandbox.run("#" + "x" * 200_000).exit_code == 126


def test_timeout_kills_the_tree_and_keeps_what_was_written(sandbox):
    started = time.monotonic()
    result = sandbox.run("echo before; echo 1 > made.txt; (sleep 99 & sleep 99); echo after", timeout_s=1.5)
    assert time.monotonic() - started < 50
    assert (result.output, result.exit_code, result.timed_out) == ("before\n[timed out after 1.5 s]", 124, True)
    assert sandbox.read("made.txt") == "1\n"


def test_background_processes_end_with_the_command(sandbox):
    started = time.monotonic()
    assert sandbox.run("sleep 99 & echo started").output == "started"
    assert time.monotonic() - started < 50


def test_long_output_loses_its_middle(sandbox):
    result = sandbox.run("seq 1 20000")
    assert result.truncated and result.exit_code == 0
    head, marker, tail = result.output.partition("bytes cut]")
    assert head.startswith("1\n2\n") and tail.endswith("20000") and marker
    assert len(result.output) < QUICK.output_bytes + 100
    cut = int(head.rsplit("[", 1)[1])
    assert cut + len(head.rsplit("\n[", 1)[0]) + len(tail.lstrip()) in range(108890, 108895)


def test_python_pytest_and_git_are_there(sandbox):
    assert sandbox.run("python -c 'import sys; print(sys.version_info[:2])'").output == str(sys.version_info[:2])
    assert sandbox.run("python3 -m pytest -q").exit_code == 1
    assert sandbox.run("PYTHONPATH=$PYTHONPATH:. pytest -q tests").exit_code == 1
    assert "No module named 'torch'" in sandbox.run("python -c 'import torch'").output
    assert sandbox.run("git status --porcelain --ignored; ls -A").output == ".git\nREADME.md\nsums\ntests"


def test_git_has_one_commit_and_its_commands_work(factory):
    files, commit = repository({path: text.encode() for path, text in FILES.items()})
    assert commit == commit_hash(FILES)
    sandbox = factory.open(make_task(base_commit=commit))
    assert sandbox.run("git rev-list --all --format=%an:%s --no-commit-header; git rev-parse HEAD | wc -c").output == (
        "dagger-nb:base\n41"
    )
    assert sandbox.run(f"git fsck --full --strict && test $(git rev-parse HEAD) = {commit}").exit_code == 0
    sandbox.run("sed -i 's/a - b/a + b/' sums/core.py; echo x > new.txt; rm README.md")
    assert sandbox.run("git status -s").output == " D README.md\n M sums/core.py\n?? new.txt"
    assert (
        sandbox.run("git stash -q && git status -s && git stash pop -q && git status -s | wc -l").output
        == "?? new.txt\n3"
    )
    sandbox.run("git checkout -q -- README.md; git clean -fdq")
    assert sandbox.run("git status -s").output == " M sums/core.py"
    assert sandbox.run("git commit -qam fix && git log --oneline | wc -l").output == "2"
    assert sandbox.run("git log --oneline | wc -l").output == "1"  # history does not persist, files do
    assert sandbox.run("git checkout . 2>/dev/null; git status -s").output == ""
    assert sandbox.diff() == ""


def test_generated_tasks_open(factory):
    with factory.open(generate("train", 0)) as sandbox:
        assert sandbox.run("git status --porcelain; git rev-parse --short HEAD | wc -c").output == "8"


def test_git_may_be_configured_and_no_device_is_in_the_way(sandbox):
    """As root a configuration named /dev/null would be written in the device's place, where one may write there."""
    said = sandbox.run("git config --global user.name x && git config --global --list && test -c /dev/null && echo ok")
    assert said.output == "user.name=x\nok"
    assert b"/dev/null" not in view.environment()


def test_git_finds_an_edit_of_equal_size(sandbox):
    sandbox.write("sums/core.py", FILES["sums/core.py"].replace("a - b", "a + b"))
    assert sandbox.run("git diff --stat | tail -1").output == " 1 file changed, 1 insertion(+), 1 deletion(-)"


def test_diff_applies_and_gives_the_same_tree(factory, sandbox, tmp_path):
    sandbox.write("sums/core.py", FILES["sums/core.py"].replace("a - b", "a + b"))
    sandbox.write("docs/new file é.txt", "no newline at the end")
    sandbox.run(r"printf '\x00\xff\x01' > blob.bin; rm README.md; mkdir sub; cd sub; git init -q; echo 1 > in.txt")
    sandbox.run(r"printf 'caf\xe9\n' > latin.txt; printf 'a\r\nb\r\n' > dos.txt")
    sandbox.run("chmod +x tests/test_core.py; ln -s sums link")
    sandbox.write(".gitattributes", "*.txt text eol=crlf working-tree-encoding=UTF-16\n")
    patch = sandbox.diff()
    assert patch.startswith("diff --git a/.gitattributes") and patch.encode()
    other = factory.open(make_task(FILES | {"fix.patch": patch}))
    assert other.run("git -c core.attributesFile=/dev/null apply fix.patch && rm fix.patch").exit_code == 0
    assert dict(other.snapshot.entries) == dict(sandbox.snapshot.entries)


def test_caches_of_tools_do_not_enter_the_tree(sandbox):
    before = sandbox.snapshot.digest
    assert sandbox.run("python -m pytest -q; python -m pytest -q --lf | tail -1").output.endswith("2 failed")
    assert sandbox.snapshot.digest == before and sandbox.diff() == ""


def test_diff_is_what_git_prints(sandbox):
    sandbox.run("sed -i 's/a - b/a + b/' sums/core.py; echo x > z.txt; sed -i '1d' README.md")
    raw = "git add -A -N . && git diff --no-color > /tmp/p && base64 -w0 /tmp/p"
    assert base64.b64decode(sandbox.run(raw).output).decode() == sandbox.diff()


# --- equal bytes, twice ------------------------------------------------------------------------------

COMMANDS = (
    "python -m pytest -q",
    "python -m pytest -v tests",
    "python -m pytest -q tests/test_core.py::test_scale",
    "sed -i 's/a - b/a + b/' sums/core.py && python -m pytest",
    "echo 'import nothing' >> tests/test_core.py; python -m pytest -q",
    "python -m unittest tests.test_core; python -m pytest -q --durations=0 -k scale | head -3",
    "grep -rn add . --include='*.py'",
    "grep -rl add",
    "find . -name '*.py'; find . -type d | head -3",
    "ls -la; ls -lR sums; ls --full-time",
    "echo x > zz; echo y > aa; mkdir mm; ls -l; find . -path ./.git -prune -o -type f",
    "sed -i 's/a - b/a + b/' sums/core.py; git diff -U0; git status -s; git status",
    "sed -i 's/a/b/' README.md; git checkout README.md; git log; git log --oneline; git stash list",
    "echo 1 >> README.md; git stash; git stash pop; git commit -am 'a commit'; git show --stat",
    "cat sums/core.py tests/*.py; head -3 README.md; wc -l sums/*.py",
    'python -c \'print(object(), {object() for _ in range(3)}, id(object()), hash("x"), {"b", "a"})\'',
    "python -c 'import tempfile, os; print(tempfile.mkdtemp(), os.listdir(\".\"), sorted(os.environ))'",
    "mktemp; echo $$ $PPID; stat -c '%s %A %n' README.md sums; id; uname -n; pwd; env | sort",
    "python -c 'import os; os.abort()'; cat nothing; nonsense; false",
    "python -c 'def f(): f()\nf()' 2>&1 | tail -3; python -c '1/0'; python -c 'import sums.nothing'",
    "seq 1 30000; exit 4",
    "yes",
    "sleep 20",
    "mkfifo pipe; ls -l pipe",
    "python -c 'import re; re.compile(\"(\")'; python -c 'import json; json.loads(\"{\")'",
)


def _observations(factory: LocalFactory) -> list:
    seen = []
    for command in COMMANDS:
        with factory.open(make_task()) as sandbox:
            result = sandbox.run(command, timeout_s=0.5 if "sleep" in command else None)
            seen.append((command, result, sandbox.snapshot.digest, sandbox.diff()))
    return seen


def test_every_kind_of_command_twice_under_load_gives_equal_bytes():
    with local_factory(limits=QUICK) as quiet:
        first = _observations(quiet)
    burner = "import time; t = time.time()\nwhile time.time() - t < 60: pass"
    load = [subprocess.Popen([sys.executable, "-c", burner]) for _ in range(2)]
    try:
        with local_factory(limits=QUICK) as busy:  # a cache of its own: every command runs again
            second = _observations(busy)
            assert busy.stats() == quiet.stats()
    finally:
        for process in load:
            process.kill()
            process.wait()
    assert first == second


# --- canonical -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "seen"),
    [
        ("\x1b[1m\x1b[31mE   assert\x1b[0m  \r\n\n\n", "E   assert"),
        ("1 failed, 2 passed, 1 warning in 12.34s", "1 failed, 2 passed, 1 warning"),
        ("=" * 29 + " 3 passed in 0.01s " + "=" * 30 + "=" * 2, "= 3 passed ="),
        ("=" * 24 + " 1 failed in 61.00s (0:01:01) " + "=" * 26, "= 1 failed ="),
        ("no tests ran in 0.00s", "no tests ran"),
        ("Ran 3 tests in 0.002s", "Ran 3 tests"),
        ("=" * 27 + " short test summary info " + "=" * 28, "= short test summary info ="),
        ("=" * 11 + " a title of its own " + "=" * 11, "=" * 11 + " a title of its own " + "=" * 11),
        (".F.F.F" + " " * 60 + "[100%]", ".F.F.F [100%]"),
        ("t.py::test_a PASSED                   [ 50%]", "t.py::test_a PASSED [ 50%]"),
        ("platform linux -- Python 3.11.7, pytest-9.0.1, pluggy-1.6.0\nrootdir: /testbed\ncollected 3 items",
         "collected 3 items"),
        ("plugins:\n  - search\nplugins: mine", "plugins:\n  - search\nplugins: mine"),
        ("<a.B object at 0x7f3a5c0d9e80>", "<a.B object at 0x0>"),
        ("MASK = 0xdeadbeef", "MASK = 0xdeadbeef"),
        ("139637976727552 and 1234567890123456", "0 and 1234567890123456"),
        ("/tmp/tmpab12_x9z/out and /tmp/tmp.a1B2c3D4e5", "/tmp/tmp/out and /tmp/tmp"),
        ('File "/home/x/.venv/lib/python3.12/json/decoder.py", line 1', 'File "<python>/json/decoder.py", line 1'),
        ("diff --git a/x b/x\nindex 12ee743..4693ad3 100644\n--- a/x", "diff --git a/x b/x\n--- a/x"),
        ("commit 9192c003527516baa4e320d7d0bcf522b4bd60c1", "commit <hash>"),
        ("HEAD is now at 9192c00 base", "HEAD is now at <hash> base"),
        ("[main 1234abc] fix it", "[main <hash>] fix it"),
        ("Saved working directory and index state WIP on main: 9192c00 base",
         "Saved working directory and index state WIP on main: <hash> base"),
        ("total 8\n-rw-r--r-- 1 root root  3 Jan  1  2026 a b.md\ndrwxr-xr-x 2 u g 4096 Nov 21 12:36 d",
         "-rw-r--r-- 3 a b.md\ndrwxr-xr-x d"),
        ("total 8\nlines", "total 8\nlines"),
        ("bash: line 1:    12 Killed                  sleep 5", "bash: line 1: Killed                  sleep 5"),
        ("b.py:9:x\nb.py:2:y\na.py:5:z\n--\nc.py:1:q", "a.py:5:z\nb.py:9:x\nb.py:2:y\n--\nc.py:1:q"),
        ("./b\n./a-b/c\n./a/d\n.", ".\n./a/d\n./a-b/c\n./b"),
        ("zebra\napple", "zebra\napple"),
    ],
)  # fmt: skip
def test_canonical(raw, seen):
    assert canonical(raw) == seen


_PIECES = st.sampled_from(
    ["\x1b[0m", "\x1b", "[0m", "\r", "\n", " ", "  ", "=" * 5, "commit ", "a1b2c3d4", " on x: ", "0x7f0011223344",
     "./a", "b.py:3:", "total 4", "-rw-r--r-- 1 a a 3 Jan  1 2026 f", "1 passed in 0.1s", "[ 10%]", "/tmp/tmp",
     "abcdefgh", "/lib/python3.11/", "é"]
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.lists(_PIECES, max_size=12).map("".join) | st.text(max_size=60))
def test_canonical_is_idempotent(text):
    assert canonical(canonical(text)) == canonical(text)


@pytest.mark.parametrize(
    "part", ["/a", "::", " ", "\x1b]", "0x", "=", "a:1:", "./", "\x1b[", "12 x, ", "_ ", "a on b: "]
)
def test_canonical_is_linear(part):
    started = time.process_time()
    canonical(part * (200_000 // len(part)))
    canonical("\n".join([part * (900 // len(part))] * 200))
    assert time.process_time() - started < 2.0


# --- snapshot and wire format ------------------------------------------------------------------------


def test_snapshot_is_a_value():
    tree = Snapshot({"a/b": Entry("f", b"1"), "c": Entry("x", b"2")})
    other = tree.put("a/d", b"3")
    assert sorted(tree.entries) == ["a/b", "c"] and sorted(other.entries) == ["a/b", "a/d", "c"]
    assert tree.digest != other.digest == Snapshot(dict(reversed(other.entries.items()))).digest
    assert other.put("c", b"4").entries["c"] == Entry("x", b"4")
    assert Snapshot({"d": Entry("d")}).put("d/e", b"").entries == {"d/e": Entry("f")}
    with pytest.raises(TypeError):
        tree.entries["c"] = Entry("f")


@given(st.lists(st.binary(max_size=9), max_size=6), st.integers(0, 200))
def test_a_torn_message_is_noticed(parts, cut):
    message = pack(parts)
    assert unpack(message) == parts
    for torn in (message[:cut], message + b"x") if cut < len(message) else (message + b"x",):
        with pytest.raises(ValueError, match="torn"):
            unpack(torn)


# --- cache -----------------------------------------------------------------------------------------


def test_equal_commands_on_equal_trees_run_once(tmp_path):
    with local_factory(limits=QUICK, cache=tmp_path / "seen.sqlite") as factory:
        one, two = factory.open(make_task()), factory.open(make_task())
        first = one.run("date +%N > stamp; date +%N")
        assert factory.stats() == {"hits": 0, "misses": 1, "uncached": 0}
        assert two.run("date +%N > stamp; date +%N") == first  # only a cache can make these equal
        assert one.read("stamp") == two.read("stamp")
        assert factory.stats() == {"hits": 1, "misses": 1, "uncached": 0}
        two.write("stamp", "other")
        assert two.run("cat stamp").output == "other" != one.run("cat stamp").output
        one.run("sleep 9", timeout_s=0.2)
        one.run("sleep 9", timeout_s=0.2)
        assert factory.stats()["uncached"] == 2
    with local_factory(limits=QUICK, cache=tmp_path / "seen.sqlite") as again:
        assert again.open(make_task()).run("date +%N > stamp; date +%N") == first
        assert again.stats() == {"hits": 1, "misses": 0, "uncached": 0}
    with local_factory(limits=Limits(memory_mb=256, wall_s=60.0), cache=tmp_path / "seen.sqlite") as tighter:
        assert tighter.open(make_task()).run("date +%N > stamp; date +%N") != first


def test_broken_cache_file_is_moved_aside(tmp_path):
    path = tmp_path / "seen.sqlite"
    path.write_bytes(b"this is no database" * 100)
    with pytest.warns(UserWarning, match="broken-0"):
        factory = local_factory(limits=QUICK, cache=path)
    assert factory.open(make_task()).run("echo hi").output == "hi"
    factory.close()
    assert (tmp_path / "seen.sqlite.broken-0").read_bytes().startswith(b"this is no")
    assert sqlite3.connect(path).execute("SELECT count(*) FROM observations").fetchone() == (1,)


def test_cache_file_that_cannot_be_made_is_an_environment_problem(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "file" / "seen.sqlite"):
        with pytest.raises(EnvironmentProblem, match="observation cache"):
            local_factory(cache=path)


def test_a_torn_value_is_run_again(tmp_path):
    with local_factory(limits=QUICK, cache=tmp_path / "seen.sqlite") as factory:
        assert factory.open(make_task()).run("echo hi").output == "hi"
    with sqlite3.connect(tmp_path / "seen.sqlite") as file:
        file.execute("UPDATE observations SET value = substr(value, 1, 9)")
    with local_factory(limits=QUICK, cache=tmp_path / "seen.sqlite") as factory:
        assert factory.open(make_task()).run("echo hi").output == "hi"
        assert factory.stats()["misses"] == 1


def _work(factory: LocalFactory, number: int) -> tuple[str, str]:
    with factory.open(make_task()) as sandbox:
        sandbox.write("n", f"{number % 5}\n")
        return sandbox.run("cat n").output, sandbox.run("echo same").output


def _process(path: Path, answers) -> None:
    with local_factory(limits=QUICK, cache=path) as factory:
        answers.put([_work(factory, number) for number in range(8)])


def test_threads_and_processes_share_a_cache(tmp_path):
    path = tmp_path / "seen.sqlite"
    expected = [(str(number % 5), "same") for number in range(8)]
    with local_factory(limits=QUICK, cache=path) as factory:
        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(lambda number: _work(factory, number), range(8))) == expected
        answers = multiprocessing.get_context("fork").Queue()
        child = multiprocessing.get_context("fork").Process(target=_process, args=(path, answers))
        child.start()
        assert answers.get(timeout=60) == expected
        child.join()
        copy = pickle.loads(pickle.dumps(factory))
        assert _work(copy, 3) == ("3", "same") and copy.stats()["misses"] == 0
        copy.close()


def test_fork_keeps_working(factory):
    def child(answers):
        answers.put(_work(factory, 2))

    answers = multiprocessing.get_context("fork").Queue()
    process = multiprocessing.get_context("fork").Process(target=child, args=(answers,))
    process.start()
    assert answers.get(timeout=60) == ("2", "same") == _work(factory, 2)
    process.join()


# --- failures of the sandbox itself --------------------------------------------------------------------


def test_missing_back_end_names_the_next_step(monkeypatch):
    monkeypatch.setattr(launch.shutil, "which", lambda name: None)
    with pytest.raises(EnvironmentProblem, match="apt-get install bubblewrap"):
        local_factory(backend="bubblewrap")


def test_a_broken_back_end_is_a_sandbox_error_with_its_last_words(factory, monkeypatch):
    sandbox = factory.open(make_task())
    monkeypatch.setattr(launch, "_BOOT", "import sys; print('fake'); sys.exit('the reason')")
    with pytest.raises(SandboxError, match="the reason"):
        sandbox.run("true # never seen before")
    monkeypatch.undo()
    assert sandbox.run("true # never seen before").exit_code == 0


def test_plain_back_end_is_loud(recwarn, caplog):
    with local_factory(limits=QUICK, backend="plain") as plain:
        assert "WITHOUT isolation" in str(recwarn.pop(UserWarning).message) and "WITHOUT isolation" in caplog.text
        assert plain.guarantees()["network"].startswith("NOT held")
        with plain.open(make_task()) as sandbox:
            assert (
                sandbox.run("pwd; ls; cat /testbed/README.md | head -1").output
                == "/testbed\nREADME.md\nsums\ntests\n# Sums"
            )
            assert sandbox.run("python -m pytest -q /testbed/tests/test_core.py").exit_code == 1
            sandbox.run("sed -i 's/a - b/a + b/' /testbed/sums/core.py")
            assert "+    return a + b" in sandbox.diff()
            assert sandbox.run("sleep 9", timeout_s=0.2).exit_code == 124


# --- hostile programs: only ever inside an isolating back end ---------------------------------------------

PYTHON = "python - <<'END'\n{}\nEND"
FORKS = """
import os
while True:
    try:
        os.fork()
    except OSError:
        pass
"""
COUNT = """
import os
n = 0
try:
    while n < 500:
        if os.fork() == 0:
            os.execlp("sleep", "sleep", "9")
        n += 1
except OSError:
    print("stopped at", n)
"""
GREEDY = """
import os, time
for _ in range(12):
    if os.fork() == 0:
        x = b"x" * (100 << 20)
        time.sleep(9)
os.wait()
"""
DEEP = "import os\nfor _ in range(3000):\n    os.mkdir('d' * 50)\n    os.chdir('d' * 50)"
TRACE = "import ctypes\nprint(ctypes.CDLL(None).ptrace(16, 1, 0, 0))"
MEMORY_FILES = "import os\nfor n in range(200):\n    os.write(os.memfd_create(str(n)), b'x' * (8 << 20))"

NAP_S = 1_000_000 + os.getpid()  # other workers have naps of their own
# name -> (command, text that must be in the output, text that must not)
HOSTILE = {
    "fork bomb": (PYTHON.format(FORKS), "", "#"),
    "memory of one process": (PYTHON.format("x = b'x' * (1 << 30)"), "MemoryError", "#"),
    "memory of many processes": (PYTHON.format(GREEDY), "", "#"),
    "memory in files without a name": (PYTHON.format(MEMORY_FILES), "", "#"),
    "memory in /dev/shm": ("for n in 1 2 3; do head -c 9000000 /dev/zero > /dev/shm/$n; done", "No space left", "#"),
    "disk": ("for n in $(seq 20); do head -c 2000000 /dev/zero > f$n; done", "No space left", "#"),
    "one large file": ("head -c 100000000 /dev/zero > big; echo end", "end", "#"),
    "sparse files": ("for n in $(seq 9); do truncate -s 9M f$n; done; truncate -s 1T f", "changes are dropped", "#"),
    "many files": ("seq 9000 | xargs touch", "changes are dropped", "#"),
    "deep folders": (PYTHON.format(DEEP), "changes are dropped", "#"),
    "tools replaced": ("rm -rf /opt/tools/*; echo gone", "gone", "Read-only"),
    "system replaced": ("touch /usr/x /opt/site/x /x /etc/x; rm -f /usr/bin/env; echo end", "Read-only", "#"),
    "daemon": (f"setsid nohup sleep {NAP_S} > /dev/null 2>&1 & echo end", "end", "#"),
    "deaf daemon": (f"(trap '' TERM INT HUP; exec setsid sleep {NAP_S}) & sleep 0.1; echo end", "end", "#"),
    "kill everything": ("kill -9 -1; kill -STOP 1; kill -INT 1; kill -TERM 1; kill -9 1; echo end", "end", "#"),
    "huge output": ("yes", "too much output", "#"),
    "mount": ("mount -t tmpfs none /testbed && echo mounted; umount /tmp && echo mounted", "", "mounted"),
    "own namespace": ("unshare -Ur mount -t tmpfs none /tmp && echo mounted; unshare -Ur id && echo made", "", "made"),
    "kernel settings": ("echo core > /proc/sys/kernel/core_pattern || echo refused", "refused", "#"),
    "replies forged": ("for n in 0 1 2 3 4 5; do echo fake > /proc/1/fd/$n; done; exit 5", "Permission denied", "#"),
    "memory of the supervisor": ("cat /proc/1/environ; cat /proc/1/mem", "Permission denied", "="),
    "ptrace": (PYTHON.format(TRACE), "-1", "#"),
    "devices": ("ls /dev; cat /dev/vda /dev/sda /dev/mem /dev/kmsg; mknod d b 8 0 && echo made", "null", "made"),
    "setuid": ("cp /bin/bash b; chmod u+s b; ./b -p -c 'cat /etc/shadow'", "", "made"),
    "secrets": ("cat /etc/shadow; ls /home /root/.ssh /root/.bashrc /var /run /sys", "No such file", "#"),
    "fifo and socket": ("mkfifo p; python -c 'import socket; socket.socket(1).bind(\"s\")'", "dropped: p, s", "#"),
    "strange names": (r"touch $'\xff' $'a\nb' $'\e[31m' -- '-rf' ' '", "", "#"),
    "closed tree": ("chmod -R 000 . ; chmod 000 /testbed", "", "#"),
    "git broken": ("rm -rf .git; echo junk > .git; git config --global alias.status '!echo hacked'", "", "hacked"),
    "stopped": ("kill -STOP $$", "timed out", "#"),
}  # fmt: skip


def _alive(text: str) -> list[int]:
    """Processes of this machine with the text in their command line."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if text.encode() in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue
    return found


# What rests on the supervisor alone is tried in one back end.
SAME_EVERYWHERE = (
    "memory of one process", "memory in files without a name", "disk", "one large file", "sparse files", "many files",
    "deep folders", "huge output", "fifo and socket", "strange names", "closed tree", "git broken", "stopped",
)  # fmt: skip


ENDLESS = ("fork bomb", "stopped")  # only the clock ends these


@pytest.mark.parametrize(
    ("isolated", "name"),
    [
        (backend, name)
        for backend in ISOLATED
        for name in HOSTILE
        if backend == ISOLATED[0] or name not in SAME_EVERYWHERE
    ],
    indirect=["isolated"],
)
def test_hostile_program_is_held(isolated, name):
    command, wanted, unwanted = HOSTILE[name]
    mounts, children = Path("/proc/self/mounts").read_text(), _children()
    with isolated.open(make_task()) as sandbox:
        result = sandbox.run(command, timeout_s=1.0 if name in ENDLESS else 30.0)
        assert wanted in result.output
        assert unwanted not in result.output
        assert len(result.output) < QUICK.output_bytes + 200
        assert (
            sandbox.run("echo next; python -c 'print(1)'; git status -s > /dev/null && echo git").output
            == "next\n1\ngit"
        )
        sandbox.diff().encode()
    assert Path("/proc/self/mounts").read_text() == mounts
    assert not _alive(f"sleep\x00{NAP_S}")
    assert _children() <= children


def _children() -> set[str]:
    """Processes that this one started and has not reaped; other rooms' tests may have left a helper of Python's own."""
    return set(Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split())


WRITABLE = """
import os, sys
own = ("/testbed", "/tmp", "/opt/tools", "/dev", "/proc/self", "/proc/thread-self")
for folder, folders, files in os.walk("/"):
    folders[:] = [f for f in folders if not (folder == "/proc" and f.isdigit())]
    if folder.startswith(("/usr/", "/opt/site/", sys.base_prefix + "/")):
        folders[:] = []  # one file system each, shown as a whole
    for path in [folder] + [os.path.join(folder, f) for f in files]:
        if not path.startswith(own) and not os.path.islink(path) and os.access(path, os.W_OK):
            print(path)
"""


def test_hostile_program_finds_nothing_to_write(isolated):
    with isolated.open(make_task()) as sandbox:
        found = sandbox.run(PYTHON.format(WRITABLE), timeout_s=60).output.splitlines()
        assert [path for path in found if not path.endswith(("site-packages", "dist-packages"))] == []
        devices = sandbox.run("find /dev -type b; cd /dev; stat -c %F:%n * | grep special").output.split("\n")
        harmless = ("full", "null", "random", "tty", "urandom", "zero")
        assert set(devices) <= {f"character special file:{name}" for name in harmless}


def test_hostile_processor_time_ends_before_the_wall_clock():
    with local_factory(limits=Limits(cpu_s=1, wall_s=60.0)) as factory, factory.open(make_task()) as sandbox:
        result = sandbox.run("python -c 'while True: pass'")
        assert result.exit_code == 137 and not result.timed_out


OWNER = """
import sys
sys.path.insert(0, {folder!r})
import test_sandboxes as t
factory = t.local_factory(backend={backend!r})
sandbox = factory.open(t.make_task())
sandbox.run("true")
if {wait}:
    print("ready", flush=True)
    sandbox.run("sleep 54322")
"""


def _own_groups(owner: int) -> list[Path]:
    return [path for path in Path("/sys/fs/cgroup").rglob(f"dagger-nb-{owner}-*") if path.is_dir()]


def test_hostile_end_of_the_owner_leaves_nothing(isolated):
    source = OWNER.format(folder=str(Path(__file__).parent), backend=isolated.backend.name, wait=True)
    owner = subprocess.Popen([sys.executable, "-c", source], stdout=subprocess.PIPE)
    assert owner.stdout.readline() == b"ready\n"
    _wait_for(lambda: _alive("sleep\x0054322"))
    owner.kill()
    owner.wait()
    owner.stdout.close()
    _wait_for(lambda: not _alive("sleep\x0054322"))
    with local_factory(backend=isolated.backend.name):  # whoever comes next clears the empty groups away
        assert _own_groups(owner.pid) == []


def test_an_owner_that_forgets_to_close_leaves_no_group():
    source = OWNER.format(folder=str(Path(__file__).parent), backend=None, wait=False)
    owner = subprocess.Popen([sys.executable, "-c", source])
    assert owner.wait(60) == 0
    assert _own_groups(owner.pid) == []


def _wait_for(condition) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_hostile_program_does_not_reach_the_host(isolated, tmp_path, monkeypatch):
    monkeypatch.setenv("DAGGER_SECRET", "sesame")
    (tmp_path / "secret.txt").write_text("sesame")
    with socket.create_server(("127.0.0.1", 0)) as server, isolated.open(make_task()) as sandbox:
        port = server.getsockname()[1]
        connect = f"python -c 'import socket; socket.create_connection((\"127.0.0.1\", {port}), 1)'"
        assert "ConnectionRefusedError" in sandbox.run(connect).output
        assert "Network is unreachable" in sandbox.run(connect.replace("127.0.0.1", "192.0.2.1")).output
        seen = sandbox.run(f"cat {tmp_path}/secret.txt; env; cat /proc/*/environ; ls {tmp_path} {os.getcwd()}; ps aux")
    assert "sesame" not in seen.output and "No such file" in seen.output


def test_hostile_tree_of_many_processes_stays_within_the_limits(isolated):
    held = isolated.guarantees()["processes"].startswith("held")
    output = isolated.open(make_task()).run(PYTHON.format(COUNT)).output
    assert held or "by rlimit" in isolated.guarantees()["processes"], "neither root's cgroup nor a user's rlimit"
    assert output.startswith("stopped at") and int(output.split()[-1]) < QUICK.processes
