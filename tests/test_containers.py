"""The Docker back end as far as it needs no engine; the rest is in tests/containers."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
from dataclasses import replace
from types import SimpleNamespace

import pytest

from dagger_nb.errors import DataError, EnvironmentProblem, ImageMissing, PullLimit, SandboxError
from dagger_nb.evaluation import official
from dagger_nb.evaluation.grades import LOST, Grade, Status
from dagger_nb.evaluation.official import Official, evaluate, marks
from dagger_nb.evaluation.predictions import Prediction
from dagger_nb.sandboxes import factory_for
from dagger_nb.sandboxes.containers import archives, errors, protections, shelf, workspace
from dagger_nb.sandboxes.containers.container import NO_PROGRAM, NO_TESTBED, Ended
from dagger_nb.sandboxes.containers.lease import Owner, machine, owner, started_at
from dagger_nb.sandboxes.containers.scripts import NO_START
from dagger_nb.sandboxes.containers.shelf import Shelf
from dagger_nb.settings import SandboxSettings
from dagger_nb.store import write_json
from dagger_nb.tasks import generate, tasks

DAEMON = {
    "ServerVersion": "20.10", "Driver": "overlay2", "NCPU": 2, "MemoryLimit": True, "SwapLimit": True,
    "PidsLimit": True, "CpuCfsQuota": True, "SecurityOptions": ["name=seccomp,profile=default"],
}  # fmt: skip
SETTINGS = SandboxSettings(back_end="docker")


def test_without_a_daemon_the_factory_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    with pytest.raises(EnvironmentProblem, match="no Docker daemon answers .*; start it .*DOCKER_HOST"):
        factory_for(SETTINGS)


def test_the_local_back_end_needs_no_docker():
    code = "import sys, dagger_nb.sandboxes; print('docker' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


# --- leases -----------------------------------------------------------------------------------------------


def test_a_living_process_is_never_taken_for_dead():
    me = owner()
    assert Owner.of_label(me.label()) == me and not me.known_dead()


def test_a_dead_process_is_told_from_one_that_got_its_number():
    process = subprocess.Popen(["sleep", "1000"])
    held = Owner(machine(), process.pid, started_at(process.pid))
    assert not held.known_dead()
    assert replace(held, started="1").known_dead()  # the number was used before by another
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert held.known_dead()  # also while nobody has collected it
    process.wait()
    assert held.known_dead()


def test_of_another_machine_nothing_is_known():
    assert not Owner("elsewhere", 1, "1").known_dead()
    assert Owner.of_label("somebody else's label") is None


# --- words ------------------------------------------------------------------------------------------------


def test_the_guarantees_say_what_this_daemon_cannot_hold():
    good = protections.of(DAEMON, SETTINGS, 100)
    assert good["memory"] == "held: 16 GB for the container" and good["cpus"].startswith("held: 2 ")
    assert {name for name, how in good.items() if how.startswith("NOT")} == {"disk"}
    weak = {"MemoryLimit": False, "SwapLimit": False, "PidsLimit": False, "CpuCfsQuota": False, "SecurityOptions": None}
    poor = protections.of(DAEMON | weak, SETTINGS, 100)
    assert {name for name, how in poor.items() if how.startswith("NOT")} == {"memory", "processes", "cpus", "disk"}
    assert "no seccomp" in poor["privileges"]
    assert (
        "nobody outside" in protections.of(DAEMON | {"SecurityOptions": ["name=rootless"]}, SETTINGS, 9)["privileges"]
    )


LIMITED = (
    "toomanyrequests: You have reached your pull rate limit",
    "error from registry: You have reached your unauthenticated pull rate limit. https://www.docker.com/...",
    "received unexpected HTTP status: 429 Too Many Requests",
)


@pytest.mark.parametrize(
    ("words", "step"),
    [
        ("failed to register layer: write /x: no space left on device", "the disk is full"),
        *((words, "docker login") for words in LIMITED),
        ("pull access denied for x, repository does not exist", "check the image's name"),
        ("manifest for x:y not found: manifest unknown", "check the image's name and tag"),
        ("dial unix /var/run/docker.sock: connect: permission denied", "group docker"),
        ("something else", ""),
    ],
)
def test_the_daemon_s_words_have_a_next_step(words, step):
    assert errors.advice(words).count(step) == 1 if step else errors.advice(words) == ""


def test_what_the_registry_may_hand_out_later_is_told_apart_from_what_it_never_does(monkeypatch):
    shelf, words = Shelf(None, 1.0, None), [""]
    monkeypatch.setattr(Shelf, "_pulled", lambda self, image: words[0])
    for words[0] in LIMITED:
        with pytest.raises(PullLimit, match="image x is not here and may not be pulled yet .*docker login, or wait"):
            shelf._pull("x")
    words[0] = "manifest unknown"
    with pytest.raises(ImageMissing, match="cannot be pulled"):
        shelf._pull("x")
    words[0] = "write /x: no space left on device"
    with pytest.raises(SandboxError, match="cannot be pulled") as raised:
        shelf._pull("x")
    assert type(raised.value) is SandboxError


# --- archives ---------------------------------------------------------------------------------------------


def test_an_archive_of_a_task_holds_its_tree_and_two_repositories():
    task = generate("dev", 0)
    with tarfile.open(fileobj=io.BytesIO(archives.files_of(task))) as archive:
        members = {member.name: member for member in archive}
        files = {name.partition("/")[2]: archive.extractfile(name).read().decode() for name in members
                 if name.startswith("testbed/") and ".git/" not in name and members[name].isfile()}  # fmt: skip
    assert files == task.files
    assert {"testbed/.git/HEAD", ".dagger-nb/git/HEAD", ".dagger-nb/git/index"} <= members.keys()
    assert {(member.uid, member.gid) for member in members.values()} == {(1000, 1000)}
    assert archives.files_of(task) == archives.files_of(task)


def test_files_of_another_commit_are_refused():
    with pytest.raises(DataError, match="not base_commit"):
        archives.files_of(replace(generate("dev", 0), base_commit="0" * 40))


# --- the patch --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [NO_START, NO_TESTBED, NO_PROGRAM])
def test_an_episode_that_removed_git_or_its_tree_has_an_empty_patch(code, caplog):
    assert workspace.diff(SimpleNamespace(run=lambda *_: Ended(code, b"gone")), "HEAD") == ""
    assert "its patch is empty" in caplog.text


@pytest.mark.parametrize("code", [1, 128, 137])
def test_any_other_failure_of_the_patch_is_one_of_the_infrastructure(code):
    with pytest.raises(SandboxError, match=f"exit status {code}.*no space left"):
        workspace.diff(SimpleNamespace(run=lambda *_: Ended(code, b"no space left on device")), "HEAD")


def test_layers_that_groups_of_images_share_are_counted_once_for_each_group():
    """As SWE-bench's images do: a base, and an environment for each repository and version."""
    chains = {f"{env}-{n}": ("base", f"env-{env}", f"own-{env}-{n}") for env in range(60) for n in range(8)}
    stems = shelf._stems(chains)
    row = {"Size": 2_000, "SharedSize": 1_800}  # MB: a base of 200, an environment of 1,600, 200 of its own
    counted = shelf._disk(shelf._size(row, stem) for stem in stems.values())
    held = 200 + 60 * 1_600 + 480 * 200
    assert held <= counted == held + 59 * 200  # the base counts for each environment
    alone = shelf._stems({"a": ("base", "a"), "b": ("base", "b"), "c": ("base", "mid", "c"), "d": ("base", "mid", "d")})
    assert alone["a"] == ("base",) and alone["d"] == ("base", "mid")
    sizes = [shelf._size({"Size": 5, "SharedSize": 1}, alone["a"])] * 2
    sizes += [shelf._size({"Size": 7, "SharedSize": 3}, alone["c"])] * 2
    assert shelf._disk(sizes) == 4 * 4 + 1 + 2


# --- the official evaluation ------------------------------------------------------------------------------


def test_instances_are_marked_by_their_gold_patches():
    runs = [
        [Grade("a", Status.RESOLVED), Grade("b", Status.UNRESOLVED), Grade("c", Status.RESOLVED),
         Grade("d", Status.INFRASTRUCTURE)],
        [Grade("a", Status.RESOLVED), Grade("b", Status.PATCH_FAILED), Grade("c", Status.UNRESOLVED),
         Grade("d", Status.RESOLVED)],
    ]  # fmt: skip
    assert marks(runs) == (("b",), ("c",)) and marks([]) == ((), ())
    found = Official(tuple(runs[0]), *marks(runs))
    assert [row.instance_id for row in found.undoubted] == ["a", "d"]


class Images:
    """A factory that only fetches, `room` images at once; the registry limits its `limited`-th call."""

    name = "docker"

    def __init__(self, limited: int = 0, room: int = 99, missing: tuple[str, ...] = ()) -> None:
        self.limited, self.room, self.missing, self.fetched, self.here = limited, room, missing, [], set()

    def prefetch(self, found, log):
        assert not any(task.files for task in found)  # swebench works in the image alone
        names = [task.instance_id for task in found]
        self.fetched.append(names)
        if len(self.fetched) == self.limited:
            return {"an-image": PullLimit("toomanyrequests")}
        self.here = {*[name for name in names if name not in self.missing][: self.room]}
        return dict.fromkeys(self.missing, SandboxError("manifest unknown"))

    def holds(self, task):
        return task.instance_id in self.here


@pytest.fixture
def swebench(monkeypatch):
    """The command line, in one process: every patch is resolved, but `lost` instances leave no report."""
    started, lost = [], set()

    def start(run, instances, workers, timeout_s):
        started.append((run.folder.name, list(instances)))
        for name in sorted({*instances} - lost):
            tests = {kind: {"success": ["t"], "failure": []} for kind in ("FAIL_TO_PASS", "PASS_TO_PASS")}
            write_json(run.log_folder(name) / "report.json", {name: {"resolved": True, "tests_status": tests}})

    monkeypatch.setattr(official, "_start", start)
    return SimpleNamespace(started=started, lost=lost)


def test_all_patches_of_an_instance_are_graded_while_its_image_is_here(swebench, tmp_path):
    found = sorted(tasks("test", 6), key=lambda task: task.instance_id)
    names = [task.instance_id for task in found]
    models = {model: [Prediction(name, model, "x\n") for name in names] for model in ("base", "dagger")}
    models["dagger"] = models["dagger"][:5]
    swebench.lost.add(names[1])
    images, said = Images(), []
    verdicts = evaluate(tmp_path, found, models, images, workers=1, gold_runs=2, log=said.append)
    assert images.fetched == [names[:4], names[4:]]
    runs = ("gold-1", "gold-2", "base", "dagger")
    assert swebench.started == [
        *((run, names[:4]) for run in runs),
        *((run, names[4:5] if run == "dagger" else names[4:]) for run in runs),
    ]
    assert [row.status for row in verdicts["base"].grades] == [
        Status.INFRASTRUCTURE if name == names[1] else Status.RESOLVED for name in names
    ]
    assert [row.status for row in verdicts["dagger"].grades if not row.resolved] == [Status.INFRASTRUCTURE] * 2
    assert len(verdicts["dagger"].grades) == 6 and "1 tasks have no prediction" in said[-1]  # no smaller denominator
    assert f"dagger: 4 of 5 resolved, 1 {LOST}: the same call tries them again" in said[-1]
    swebench.started.clear()
    swebench.lost.clear()
    again = evaluate(tmp_path, found, models, images, workers=1, gold_runs=2, log=said.append)
    assert swebench.started == [(run, names[1:2]) for run in runs] and images.fetched[2] == names[1:2]
    assert [row.instance_id for each in again.values() for row in each.grades if not row.resolved] == names[5:]


def test_images_beyond_the_budget_take_the_place_of_those_that_were_used(swebench, tmp_path):
    """The command line is given what is here, or it would pull images that nobody removes."""
    found = sorted(tasks("test", 4), key=lambda task: task.instance_id)
    names = [task.instance_id for task in found]
    images = Images(room=2, missing=(names[1],))
    models = {"m": [Prediction(name, "m", "x\n") for name in names]}
    grades = evaluate(tmp_path, found, models, images, workers=1, gold_runs=0)["m"].grades
    assert swebench.started == [("m", [names[0], names[2]]), ("m", [names[3]])]
    assert images.fetched == [names, [names[1], names[3]], [names[1]]]
    assert [row.instance_id for row in grades if row.status is Status.INFRASTRUCTURE] == [names[1]]


def test_a_registry_that_limits_pulls_is_waited_for_before_the_command_line_starts(swebench, tmp_path, monkeypatch):
    waited, said, images = [], [], Images(limited=1)
    monkeypatch.setattr(official.time, "sleep", waited.append)
    found = tasks("test", 1)
    models = {"m": [Prediction(found[0].instance_id, "m", "x\n")]}
    evaluate(tmp_path, found, models, images, workers=1, log=said.append)
    assert waited == [official.PAUSE_S] and len(images.fetched) == 2
    assert "hands out no more images for now; it is asked again in 10 minutes" in said[0]
