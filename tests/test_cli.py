"""The command line: messages, exit codes, and what each command prints."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from dagger_nb import cli, config, doctor, paths, provenance, reproduction, store
from dagger_nb.doctor import checks, examination, gpu, machine

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Everything is written below a folder of the test; notebooks come from it as well."""
    monkeypatch.setenv(paths.HOME_VARIABLE, str(tmp_path))
    monkeypatch.setattr(paths, "notebooks", lambda: tmp_path / "notebooks")
    (tmp_path / "notebooks").mkdir()
    return tmp_path


def add_notebook(home: Path, name: str, source: str) -> None:
    parameters = "profile: str = 'tiny'  # budgets\nseed: int = 0  # root\noverrides: dict = {}  # settings"
    tagged = new_code_cell(parameters, metadata={"tags": ["parameters"]})
    cells = [new_markdown_cell("# One"), tagged, new_code_cell(source)]
    nbformat.write(new_notebook(cells=cells), home / "notebooks" / name)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["reproduce", "--profile", "tinny"], "did you mean 'tiny'"),
        (["reproduce", "--seed", "-1"], "seed = -1"),
        (["reproduce", "-p", "sed=1"], "no notebook has a parameter 'sed'"),
        (["reproduce", "-p", "seed"], "is not name=value"),
        (["reproduce", "-p", "training.pases=2"], "'training.pases'"),
        (["reproduce", "-p", "training.passes=0"], "training.passes = 0"),
        (["reproduce", "-p", "overrides={}"], "give each setting by its name"),
        (["run", "03", "-p", "teacher.endpoit=x"], "did you mean 'teacher.endpoint'"),
        (["run", "04"], "no notebook '04'"),
        (["run", "03_stf"], "did you mean '03_sft'"),
        (["run", "03", "-p", "rate=1"], "has no parameter 'rate'"),
        (["run", "03", "--profile", "tinny"], "unknown profile"),
        (["doctor", "--profile", "tinny"], "unknown profile"),
        (["show", "sft-s0"], "did you mean 'sft-s1-01234567'"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(home: Path, capsys: Capture, arguments: list[str], said: str) -> None:
    add_notebook(home, "03_sft.ipynb", "1")
    (home / "data" / "runs" / "sft-s1-01234567").mkdir(parents=True)
    assert cli.main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and said in captured.err and captured.err.count("\n") == 1


@pytest.mark.parametrize("arguments", [[], ["reprodcue"], ["reproduce", "--timeout", "0"], ["run"], ["clean", "all_"]])
def test_usage_errors_leave_with_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2


def test_help_shows_examples(capsys: Capture) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    printed = capsys.readouterr().out
    assert all(f"dagger-nb {name}" in printed for name in ("reproduce", "run", "doctor", "plan", "show", "clean"))


@pytest.mark.parametrize("command", ["reproduce", "run", "plan"])
def test_help_names_every_profile(capsys: Capture, command: str) -> None:
    with pytest.raises(SystemExit):
        cli.main([command, "--help"])
    said = " ".join(capsys.readouterr().out.split()).replace("- ", "-")
    assert all(name in said for name in config.PROFILES)


def test_reproduce_ends_with_where_everything_is(home: Path, capsys: Capture) -> None:
    add_notebook(home, "00_start.ipynb", "print(profile, seed)")
    assert cli.main(["reproduce", "--profile", "smoke", "--seed", "2"]) == 0
    last = capsys.readouterr().out.strip().splitlines()[-1]
    folder = home / "reports" / "smoke-s2"
    assert f"notebooks: {folder} " in last and f"report: {folder / 'html' / 'index.html'}" in last
    assert f"figures: {home / 'figures'} " in last and f"results: {home / 'data' / 'results' / 'smoke-s2'} " in last
    assert (folder / "00_start.ipynb").is_file() and (folder / "html" / "00_start.html").is_file()


def test_run_takes_a_number_and_parameters(home: Path, capsys: Capture) -> None:
    add_notebook(home, "03_sft.ipynb", "print('seed', seed)")
    assert cli.main(["run", "03", "-p", "seed=5"]) == 0
    assert "03_sft.ipynb" in capsys.readouterr().out.splitlines()[-1]


@pytest.mark.slow
def test_settings_reach_the_notebooks_and_have_folders_of_their_own(home: Path, capsys: Capture) -> None:
    """With overrides, without, and with them again, which finds its finished notebook."""
    log = f"open({str(home / 'log')!r}, 'a').write"
    begin = "from dagger_nb import notebook\nsettings = notebook.begin(profile, seed, overrides)"
    add_notebook(home, "00_start.ipynb", f"{begin}\n{log}(str(settings.training.passes))")
    chosen = ["-p", "training.passes=7", "-p", "threads=1"]
    folders = []
    for more in (chosen, [], chosen):
        assert cli.main(["reproduce", "--profile", "smoke", *more]) == 0
        folders.append(capsys.readouterr().out.strip().splitlines()[-1])
    usual = config.load("smoke").training.passes
    assert (home / "log").read_text() == f"7{usual}"
    assert folders[0] == folders[2] != folders[1]
    own, plain = paths.report_folder("smoke", 0, {"training.passes": 7, "threads": 1}), home / "reports" / "smoke-s0"
    assert {folder.name for folder in (home / "reports").iterdir()} == {own.name, plain.name}
    assert f"results: {home / 'data' / 'results' / own.name} " in folders[0]
    assert cli.main(["run", "00", "--profile", "smoke", *chosen]) == 0
    assert str(own / "00_start.ipynb") in capsys.readouterr().out and (home / "log").read_text() == f"7{usual}7"


def test_a_failing_notebook_is_one_line(home: Path, capsys: Capture) -> None:
    from_inside = "from dagger_nb.errors import ConfigError\nraise ConfigError('what, where, next step')"
    add_notebook(home, "00_start.ipynb", from_inside)
    assert cli.main(["reproduce", "--profile", "smoke"]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: 00_start.ipynb: cell 4 failed with ConfigError: what, where, next step; see ")


def _raise(error: BaseException) -> object:
    def instead(*_: object, **__: object) -> None:
        raise error

    return instead


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (KeyboardInterrupt(), 130, "interrupted; give the same command again"),
        (OSError(errno.ENOSPC, "No space left on device"), 2, "error: [Errno 28] No space left"),
    ],
)
def test_interrupts_and_full_disks_are_told(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture, error: BaseException, code: int, said: str
) -> None:
    monkeypatch.setattr(reproduction, "reproduce", _raise(error))
    assert cli.main(["reproduce"]) == code
    assert said in capsys.readouterr().err


def test_a_mistake_in_the_program_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reproduction, "reproduce", _raise(FileNotFoundError(errno.ENOENT, "a bug")))
    with pytest.raises(FileNotFoundError):
        cli.main(["reproduce"])


def test_an_old_python_gets_a_sentence(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 9, 2, "final", 0))
    assert cli.main(["doctor"]) == 2
    assert "needs 3.11 or newer" in capsys.readouterr().err


def test_python_dash_m_is_the_same_command() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "dagger_nb", "reproduce", "--profile", "nope"],
        cwd=paths.project(), capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 2 and run.stderr.startswith("error: unknown profile 'nope'")


def heed_interrupts() -> None:
    """A shell's background jobs ignore SIGINT, and so would whatever these tests start there."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_ctrl_c_ends_at_once_and_says_how_to_go_on(home: Path) -> None:
    add_notebook(home, "00_slow.ipynb", f"import time\nopen({str(home / 'began')!r}, 'w')\ntime.sleep(60)")
    code = (
        "import sys\nfrom pathlib import Path\nfrom dagger_nb import cli, paths\n"
        f"paths.notebooks = lambda: Path({str(home / 'notebooks')!r})\n"
        "sys.exit(cli.main(['reproduce', '--profile', 'smoke']))"
    )
    run = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=paths.project(),
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=heed_interrupts,
    )
    end = time.monotonic() + 60
    while not (home / "began").exists() and time.monotonic() < end:
        time.sleep(0.05)
    os.killpg(run.pid, signal.SIGINT)
    _, error = run.communicate(timeout=60)
    assert run.returncode == 130
    assert error.strip() == "interrupted; give the same command again to go on"


@pytest.mark.parametrize("arguments", [["reproduce"], ["run", "02"], ["run", "04"]])
def test_a_served_profile_is_refused_with_what_fails_before_anything_runs(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture, arguments: list[str]
) -> None:
    for name in ("02_tasks.ipynb", "04_dagger.ipynb"):
        add_notebook(home, name, f"open({str(home / 'ran')!r}, 'w')")
    found = [doctor.Check("git", "ok", "here"), doctor.Check("GPU", "fail", "none", "run on a machine with one")]
    monkeypatch.setattr(examination, "examine", lambda *_: found)
    assert cli.main([*arguments, "--profile", "qwen3-4b"]) == 2
    error = capsys.readouterr().err
    assert "profile qwen3-4b cannot run here" in error and "fail GPU" in error and "git" not in error
    assert not (home / "ran").exists() and not (home / "reports").exists()


H100 = "NVIDIA H100 80GB HBM3, 81559, 570.86.15"
SMALLER = "teacher.path=Qwen/Qwen3-Coder-30B-A3B-Instruct-FP8"


@pytest.mark.parametrize("profile", ["qwen3-4b", "qwen3-8b"])
def test_one_gpu_of_80_gb_is_refused_with_the_override_that_it_then_accepts(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture, profile: str
) -> None:
    """From the command line to the checks of this machine, which only tells of such a GPU."""
    add_notebook(home, "04_dagger.ipynb", f"open({str(home / 'ran')!r}, 'w')")
    program = home / "nvidia-smi"
    program.write_text(f"#!/bin/sh\necho '{H100}'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{home}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(examination, "examine", lambda *given: gpu.gpu(config.load(*given))[:1])
    assert cli.main(["run", "04", "--profile", profile]) == 2
    assert f"give -p {SMALLER} (" in capsys.readouterr().err and not (home / "ran").exists()
    assert cli.main(["run", "04", "--profile", profile, "-p", SMALLER]) == 0
    assert (home / "ran").exists()
    assert cli.main(["plan", "--profile", profile, "-p", SMALLER]) == 0
    assert "NVIDIA H100 80GB: fits; its caches hold" in capsys.readouterr().out
    assert cli.main(["doctor", "--profile", profile, "-p", SMALLER]) == 0
    assert "its linear layers in 8 bits" in capsys.readouterr().out


def test_a_served_run_that_goes_on_is_not_refused_for_the_room_it_took(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    add_notebook(home, "02_tasks.ipynb", "1")
    monkeypatch.setattr(examination, "examine", lambda *_: [checks.disk("disk", home, 1e9, "HOME")])
    assert cli.main(["run", "02", "--profile", "qwen3-4b"]) == 2
    assert "fail disk" in capsys.readouterr().err
    settings = config.load("qwen3-4b")
    (provenance.run_folder("sft", settings) / "rounds").mkdir(parents=True)
    assert cli.main(["run", "02", "--profile", "qwen3-4b"]) == 0
    dearer = ["-p", "labels.queries=200"]  # the same run with a higher limit
    assert cli.main(["run", "02", "--profile", "qwen3-4b", *dearer]) == 0


def test_a_teacher_that_cannot_label_is_refused_before_the_first_notebook(home: Path, capsys: Capture) -> None:
    add_notebook(home, "00_start.ipynb", "1")
    teacher = ["-p", "teacher.path=some/model", "-p", "teacher.endpoint=http://127.0.0.1:9/v1"]
    assert cli.main(["reproduce", "--profile", "tiny", *teacher]) == 2
    assert "student.back_end=vllm" in capsys.readouterr().err


# --- show and clean ---------------------------------------------------------------------------------------


def test_show_prints_configuration_manifest_and_what_was_edited(home: Path, capsys: Capture) -> None:
    run = store.RunStore(home / "data" / "runs" / "sft-s1-01234567", {"training": {"passes": 3}})
    assert cli.main(["show", run.root.name]) == 0
    printed = capsys.readouterr().out
    assert "unfinished" in printed and "training.passes: 3" in printed
    store.write_text(run.root / "grades.jsonl", "{}\n")
    run.finish({"stops": {"finish": 7}})
    assert cli.main(["show", str(run.root)]) == 0
    printed = capsys.readouterr().out
    assert "complete" in printed and "stops.finish: 7" in printed and "as written" in printed
    (run.root / "grades.jsonl").write_text("edited")
    assert cli.main(["show", run.root.name]) == 1
    assert "changed since they were written: grades.jsonl" in capsys.readouterr().out
    (run.root / "manifest.json").write_text('{"stops": ')
    assert cli.main(["show", run.root.name]) == 2


def test_clean_only_removes_with_yes_and_only_what_is_written(home: Path, capsys: Capture) -> None:
    kept = home / "data" / "results" / "tiny-s0"
    for folder in (home / "data" / "runs" / "a", home / "data" / "cache", home / "reports" / "tiny-s0", kept):
        folder.mkdir(parents=True)
        (folder / "file").write_bytes(b"0" * 2_000_000)
    assert cli.main(["clean"]) == 0
    assert "would remove" in capsys.readouterr().out and (home / "data" / "runs" / "a" / "file").is_file()
    assert cli.main(["clean", "runs", "--yes"]) == 0
    assert "(2.0 MB)" in capsys.readouterr().out
    assert not (home / "data" / "runs").exists() and (home / "reports").is_dir()
    assert cli.main(["clean", "--yes"]) == 0
    assert not (home / "reports").exists() and not (home / "data" / "cache").exists() and (kept / "file").is_file()
    assert cli.main(["clean"]) == 0
    assert "nothing to remove" in capsys.readouterr().out


def test_clean_removes_answers_that_were_paid_for_only_by_name(home: Path) -> None:
    (home / "data" / "answers").mkdir(parents=True)
    assert cli.main(["clean", "--yes"]) == cli.main(["clean", "all", "--yes"]) == 0
    assert (home / "data" / "answers").is_dir()
    assert cli.main(["clean", "answers", "--yes"]) == 0
    assert not (home / "data" / "answers").exists()


# --- doctor -----------------------------------------------------------------------------------------------


def test_doctor_prints_a_line_a_check_and_fails_only_on_failures(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    good, odd = doctor.Check("git", "ok", "/usr/bin/git"), doctor.Check("sandbox", "warn", "weak", "install bubblewrap")
    monkeypatch.setattr(examination, "examine", lambda *_: [good, odd])
    assert cli.main(["doctor"]) == 0
    assert "warn sandbox          weak  ->  install bubblewrap" in capsys.readouterr().out
    monkeypatch.setattr(examination, "examine", lambda *_: [good, doctor.Check("disk", "fail", "full", "free some")])
    assert cli.main(["doctor"]) == 1


def test_doctor_finds_this_machine_fit() -> None:
    found = {check.name: check for check in doctor.examine("smoke")}
    needed = ("python", "git", "torch", "transformers", "swebench", "disk", "write permission")
    assert {name: found[name].status for name in needed} == dict.fromkeys(needed, "ok")
    assert found["sandbox"].what


def test_doctor_says_what_a_weak_sandbox_does_not_hold() -> None:
    plain = machine.sandbox("plain")
    assert plain.status == "warn" and "network NOT held" in plain.what and "bubblewrap" in plain.next_step


def test_doctor_sees_what_is_wrong(home: Path) -> None:
    assert machine.python_version((3, 10, 1)).status == "fail"
    assert machine.tool("no-such-tool").status == "fail"
    assert checks.disk("disk", home, 1e9, paths.HOME_VARIABLE).status == "fail"
    (home / "data").write_text("a file in the way")
    refused = machine.write_permission()
    assert refused.status == "fail" and paths.HOME_VARIABLE in refused.next_step
    other = {"pytest": machine.Requirement("pytest<1"), "no-such-package": machine.Requirement("no-such-package==1")}
    assert [check.status for check in machine.packages(other)] == ["fail", "fail"]


def test_doctor_checks_the_base_model_by_content(tmp_path: Path) -> None:
    assert machine.base_model(tmp_path).status == "fail"
    (tmp_path / "weights.bin").write_bytes(b"weights")
    files = {"weights.bin": store.file_sha256(tmp_path / "weights.bin")}
    (tmp_path / "manifest.json").write_text(json.dumps({"files": files}))
    assert machine.base_model(tmp_path).status == "ok"
    (tmp_path / "weights.bin").write_bytes(b"edited")
    assert "changed files: weights.bin" in machine.base_model(tmp_path).what
    (tmp_path / "weights.bin").unlink()
    assert "missing or changed files: weights.bin" in machine.base_model(tmp_path).what
