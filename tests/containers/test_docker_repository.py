"""Images with a repository at /testbed: the future is gone, the past is one commit, and the patch fits the image."""

from __future__ import annotations

import contextlib
import dataclasses
import subprocess
from pathlib import Path

import pytest
from common import HOSTILE, PATIENT_S
from docker_images import git, load, of_folder, of_task

from dagger_nb.errors import SandboxError
from dagger_nb.evaluation.grades import Status
from dagger_nb.evaluation.grading import grade
from dagger_nb.records import Task
from dagger_nb.sandboxes.containers.archives import tar
from dagger_nb.tasks import generate

BUGGY, FIXED = "def add(a, b):\n    return a - b\n", "def add(a, b):\n    return a + b\n"


def write(folder: Path, path: str, text: str) -> None:
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    (folder / path).write_text(text)


@pytest.fixture(scope="module")
def repository(tmp_path_factory) -> tuple[Path, str, str]:
    """A repository as a careless image has it (folder, base commit, the fix's commit): the fix is in the object
    store, on a branch, behind a tag, in a stash, in the reflog and on a remote; and a build has left its traces."""
    folder, remote = tmp_path_factory.mktemp("repository"), tmp_path_factory.mktemp("remote")
    git(folder, "init -q -b master")
    for number, text in enumerate(("x = 0\n", "x = 1\n", BUGGY)):
        write(folder, "calc.py", text)
        write(folder, "setup.cfg", "[metadata]\n")
        git(folder, "add -A", f"commit -qm past-{number}", f"tag -a v1.{number} -m released" if number < 2 else "gc -q")
    base = git(folder, "rev-parse HEAD")
    git(folder, "tag nightly")  # nearer than v1.1, and no release
    write(folder, "calc.py", FIXED)
    git(folder, "commit -qam the-fix", "tag -a v2 -m v2", "branch future")
    fix = git(folder, "rev-parse HEAD")
    git(remote, "init -q --bare")
    git(folder, f"remote add origin {remote}", "push -q origin master --tags", "fetch -q origin")
    git(folder, "branch -q -u origin/master", f"reset -q --hard {base}")
    write(folder, "calc.py", FIXED)
    git(folder, "stash -q", "gc -q")
    write(folder, "build/calc.log", "built\n")
    return folder, base, fix


@pytest.fixture(scope="module")
def images(client, base, repository, tmp_path_factory) -> dict[str, str]:
    """Names of images: careless; with what an image's makers do after the checkout; foreign; with no repository."""
    folder, _, fix = repository
    prepared = tmp_path_factory.mktemp("prepared") / "copy"
    subprocess.run(["cp", "-a", folder, prepared], check=True)
    write(prepared, "setup.cfg", "[metadata]\nname = pinned\n")
    git(prepared, "commit -qam prepared")
    write(prepared, "calc.py", BUGGY + "# left by a build\n")
    activate = tar([(b"root/.bashrc", b"f", 0, b'export MARK="$NEVER_SET activated" PATH=/opt/tests/bin:$PATH\n')])
    made = {
        "dagger-nb/careless": of_folder(base, folder).on_top(activate),
        "dagger-nb/prepared": of_folder(base, prepared),
        "dagger-nb/user": of_folder(base, folder, owner="1000:1000", User="agent"),
        "dagger-nb/locked": of_folder(base, folder, User="agent"),
    }
    load(client, {f"{name}:latest": image for name, image in made.items()})
    return {name.partition("/")[2]: name for name in made}


def task(image: str, base_commit: str) -> Task:
    return Task("calc-1", "x/calc", base_commit, "", "", "", (), (), "1", image, "", "", "")


TRACES = (
    "git tag | grep -v v1.1",
    "git branch -a --format='%(refname)' | grep -v main",
    "git remote",
    "git stash list",
    "git fsck --lost-found 2>/dev/null",
    "git config --get-regexp 'remote|branch'",
    "grep -rhv '^#' .git/packed-refs .git/FETCH_HEAD .git/logs/refs/stash 2>/dev/null",
)


@pytest.mark.parametrize("image", ["careless", "user"])
def test_the_fix_is_nowhere_and_the_base_commit_is_all_there_is(factory, images, repository, image):
    _, base, fix = repository
    with factory.open(task(images[image], base)) as sandbox:

        def said(command: str) -> str:
            return sandbox.run(command, PATIENT_S).output

        assert said("git rev-parse HEAD; git log --all --format=%s | wc -l") == f"{base}\n1"
        for command in TRACES:
            assert said(f"{command} || true") == "", command
        assert said("git describe --tags --long --match 'v*'") == f"v1.1-0-g{base[:7]}"  # a package's version
        assert "commit" not in said("git reflog | grep -v HEAD@{0}")
        # as every script of SWE-bench does, as root; a configuration named /dev/null would be written in its place
        assert said("git config --global --add safe.directory /testbed && test -c /dev/null && echo held") == "held"
        said("git config --global diff.noprefix true; git config --global core.excludesFile /testbed/new; echo > new")
        assert "+++ b/new" in sandbox.diff() and "noprefix" in said("git config --global --list; rm new ~/.gitconfig")
        assert sandbox.run(f"git cat-file -e {fix}", PATIENT_S).exit_code != 0
        assert sandbox.run(f"git cat-file -e {base}", PATIENT_S).exit_code == 0
        blob = subprocess.run(["git", "hash-object", "--stdin"], input=FIXED, capture_output=True, text=True).stdout
        assert sandbox.run(f"git cat-file -e {blob}", PATIENT_S).exit_code != 0
        assert said("git status --short; cat calc.py; git checkout -q HEAD calc.py; git show --stat | tail -1") == (
            "?? build/\n" + BUGGY + " 2 files changed, 3 insertions(+)"
        )
        assert sandbox.diff() == ""


def test_what_the_image_s_makers_did_is_kept_and_is_not_in_the_patch(factory, images, repository):
    _, base, fix = repository
    with factory.open(task(images["prepared"], base)) as sandbox:
        assert sandbox.run("git log --format=%s").output == "prepared\npast-2"
        assert sandbox.run(f"git cat-file -e {fix}").exit_code != 0
        assert sandbox.read("setup.cfg").endswith("pinned\n") and sandbox.diff() == ""
        sandbox.write("calc.py", FIXED + "# left by a build\n")
        assert [line for line in sandbox.diff().split("\n") if line.startswith(("+", "-"))][2:] == [
            "-    return a - b",
            "+    return a + b",
        ]


def test_commands_run_in_what_the_image_s_bashrc_sets_up(factory, images, repository):
    with factory.open(task(images["careless"], repository[1])) as sandbox:
        found = sandbox.run("echo $MARK, $PATH, $LANG, ${GIT_DIR-no GIT_DIR}; id -un", PATIENT_S).output
    assert found == "activated, /opt/tests/bin:/usr/local/bin:/usr/bin:/bin, C.UTF-8, no GIT_DIR\nroot"


def test_what_an_image_holds_is_shown_as_it_is(factory, images, repository):
    """An agent opens the paths that it sees, and edits the lines: neither differs between hosts."""
    shown = 'MASK = 0x7fffffffffff\nPATH = "/opt/envs/testbed/lib/python3.9/site-packages/numpy/core.py"'
    with factory.open(task(images["careless"], repository[1])) as sandbox:
        sandbox.write("constants.py", shown + "\n")
        assert sandbox.run("cat constants.py").output == shown
        assert sandbox.run("python -c 'print(object())'").output == "<object object at 0x0>"


def test_the_image_s_user_runs_commands(factory, images, repository):
    with factory.open(task(images["user"], repository[1])) as sandbox:
        assert sandbox.run("id -un; touch /testbed/mine && ls -l /etc/passwd > /dev/null; touch /etc/x").exit_code == 1


def test_an_image_s_root_is_the_root_that_its_tests_were_made_with(factory, images, repository):
    """They unlink in folders that are read-only, give files away, and run as another user."""
    steps = (
        "mkdir ro && touch ro/f && chmod 555 ro && rm ro/f",
        "touch secret && chmod 000 secret && cat secret",
        "touch theirs; python -c 'import os; os.chown(\"theirs\", 1000, 1000)' && chmod 600 theirs && echo x >> theirs",
        'python -c \'import os; os.setgid(1000); os.setuid(1000); open("/etc/x", "w")\' 2>&1 | grep -q Permission',
    )
    with factory.open(task(images["careless"], repository[1])) as sandbox:
        for step in steps:
            assert sandbox.run(step, PATIENT_S).exit_code == 0, step


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_program_fails_as_an_image_s_root_too(factory, images, repository, name):
    with factory.open(task(images["careless"], repository[1])) as sandbox:
        assert sandbox.run("id -u").output == "0"
        sandbox.write("evil.py", HOSTILE[name])
        assert sandbox.run("python evil.py", PATIENT_S).exit_code == 1


@pytest.mark.parametrize(
    ("image", "commit", "words"),
    [
        ("careless", "0" * 40, "does not descend from base_commit 000"),
        ("locked", "", "cannot remove refs"),
        ("dagger-nb/host", "", "no folder /testbed"),
    ],
)
def test_an_image_that_cannot_be_used_says_why(factory, client, base_name, images, image, commit, words):
    before = len(client.containers.list(all=True))
    name = base_name if image == "dagger-nb/host" else images[image]
    with pytest.raises(SandboxError, match=words):
        factory.open(task(name, commit))
    assert len(client.containers.list(all=True)) == before


DESTRUCTION = {
    "tree": "rm -rf /testbed",
    "git": "rm -f $(command -v git)",
    "another git": 'printf "#!/bin/sh\\nexit 1\\n" > $(command -v git)',
    "bash": "rm -f /bin/bash /usr/bin/bash",
    "bash, and all is killed": "rm -f /bin/bash /usr/bin/bash; kill -KILL $$",
    "libraries, and all is killed": "mv /usr/lib /usr/gone; kill -KILL $$",
    "the copy of the repository": "rm -rf /.dagger-nb; echo x > /.dagger-nb",
    "everything": "rm -rf /* > /dev/null 2>&1",
}


@pytest.mark.parametrize("what", DESTRUCTION)
def test_what_the_agent_destroys_is_its_own_failure(factory, images, repository, what):
    with factory.open(task(images["careless"], repository[1])) as sandbox:
        sandbox.run(f"echo x >> calc.py; {DESTRUCTION[what]}", PATIENT_S)
        if what != "the copy of the repository" and "git" not in what:
            assert sandbox.run("echo on", PATIENT_S).exit_code in (126, 127)
        with contextlib.suppress(OSError):
            sandbox.write("calc.py", FIXED)
        with contextlib.suppress(OSError):
            sandbox.read("calc.py")
        assert sandbox.diff() == ""


def test_a_missing_tree_is_told_to_the_agent(factory, images, repository):
    with factory.open(task(images["careless"], repository[1])) as sandbox:
        sandbox.run("rm -rf /testbed", PATIENT_S)
        assert sandbox.run("ls", PATIENT_S).output == "bash: cd: /testbed: No such file or directory"
        with pytest.raises(FileNotFoundError):
            sandbox.read("calc.py")


def test_what_happens_from_outside_is_no_failure_of_the_agent(factory, client, images, repository):
    """A killed container goes on with its files; one that was removed is a failure of the infrastructure."""
    with factory.open(task(images["careless"], repository[1])) as sandbox:
        sandbox.write("calc.py", FIXED)
        client.api.kill(sandbox._open.id)
        assert "+    return a + b" in sandbox.diff()
        client.api.remove_container(sandbox._open.id, force=True)
        for use in (lambda: sandbox.run("true"), lambda: sandbox.write("x", ""), sandbox.diff):
            with pytest.raises(SandboxError, match="No such container"):
                use()


def test_a_generated_task_is_graded_alike_from_its_files_and_from_its_image(factory, client, base):
    found = generate("dev", 0)
    load(client, {found.image: of_task(base, found)})
    bare = dataclasses.replace(found, files={})
    for patch, status in ((found.patch, Status.RESOLVED), ("", Status.EMPTY_PATCH), ("x\n", Status.PATCH_FAILED)):
        for variant in (found, bare):
            assert grade(variant, patch, factory, timeout_s=PATIENT_S).status is status
