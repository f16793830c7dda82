"""The prediction against runs made up by hand: small records with known counts, written through the real store."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from dagger_nb import cli, config, results
from dagger_nb.errors import ConfigError, DataError
from dagger_nb.experiment import EXAMS, Experiment, exam_size
from dagger_nb.fleet import Fleet, progress_line
from dagger_nb.planning import comparison, footprint, needs, plan, rates, scale, usage
from dagger_nb.recipes import RECIPES
from dagger_nb.records import Action, Label, StopReason, Trajectory, Turn
from dagger_nb.results import PROGRAMME, exam_group
from dagger_nb.settings import Settings
from dagger_nb.sizing import gpus, shapes
from dagger_nb.store import CohortRecord, round_group, write_json

TEST = Action("Test.", "execute_bash", {"command": "python -m pytest"})
LOOK = Action("Look.", "execute_bash", {"command": "ls"})
EDIT = Action("Mend.", "str_replace_editor", {"command": "str_replace", "path": "a.py", "old_str": "1", "new_str": "2"})
FINISH = Action("Done.", "finish")


def trajectory(name: str, actions: list[Action], *, round_: int = 1, patch: str = "x") -> Trajectory:
    turns = tuple(
        Turn(index, "student", action, "seen", tuple(range(10)), 20, 0.5, 0.7) for index, action in enumerate(actions)
    )
    return Trajectory(name, 0, round_, "base", turns, StopReason.FINISH, patch, 300)


def cohort(tasks: int, prefix: str) -> CohortRecord:
    paths_ = [trajectory(f"{prefix}-{n}", [TEST, LOOK, EDIT, TEST, FINISH]) for n in range(tasks)]
    return CohortRecord(tuple(paths_), (), {})


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """The smoke profile of one round, at home in a temporary folder, with rates of its own."""
    monkeypatch.setenv("DAGGER_NB_HOME", str(tmp_path))
    monkeypatch.setattr(rates, "rates_file", lambda: tmp_path / "rates.json")
    monkeypatch.setattr(plan, "rates_file", lambda: tmp_path / "rates.json")
    monkeypatch.setitem(config.PROFILES, "smoke", {**config.PROFILES["smoke"], "dagger.rounds": 1})
    return config.load("smoke")


def write_runs(settings: Settings) -> list[Experiment]:
    """Every phase that the plan knows, with the same episode everywhere."""
    made = []
    for name in RECIPES:
        run = Experiment(name, settings, Fleet(1))
        for round_ in range(1, run.recipe.rounds + 1):
            run.store.write_cohort(round_group(round_), 0, cohort(run.recipe.tasks_per_round, f"train-{round_}"))
            fit = {"adapter": "a" * 64, "examples": run.recipe.tasks_per_round, "tokens": 1000, "seconds": 5.0}
            write_json(run.adapter_folder(round_) / "fit.json", fit)
        for exam in PROGRAMME[name]:
            record = cohort(exam_size(EXAMS[exam], settings), EXAMS[exam].split)
            run.store.write_cohort(exam_group(run, exam), 0, record)
        made.append(run)
    return made


def write_rates(settings: Settings, made: list[Experiment]) -> None:
    used = usage.count(made)
    seconds = {phase.kind: 0.5 for phase in used}
    found = rates.measure(used, seconds, 2.0, settings.training.passes)
    write_json(rates.rates_file(), {"source": "made up", "rates": found})


def test_a_test_run_is_known_by_task_edits_and_command():
    runs = list(usage.pytest_runs(trajectory("a", [TEST, LOOK, TEST, EDIT, TEST])))
    assert len(runs) == 3 and runs[0] == runs[1] != runs[2]
    assert set(runs).isdisjoint(usage.pytest_runs(trajectory("b", [TEST])))


def test_counting_adds_up_the_records(settings):
    phases = {phase.phase: phase for phase in usage.count(write_runs(settings))}
    collected, trained = phases["sft collect 1"], phases["sft train 1"]
    episodes = settings.tasks.tasks_per_round * settings.dagger.rounds
    assert (collected.kind, trained.kind) == ("teacher train", "training teacher")
    assert collected.episodes == episodes and collected.turns == 5 * episodes
    assert collected.tokens == episodes * (300 + 5 * 10 + 5 * 20)
    assert trained.tokens == 1000 * settings.training.passes
    assert collected.test_runs == collected.fresh_runs == 2 * episodes
    assert phases["dagger collect 1"].fresh_runs == 0  # the same tasks and edits as SFT's
    assert (
        phases["base grading"].fresh_runs == phases["base grading"].test_runs == 8
        and phases["sft grading"].fresh_runs == 0
    )


def test_rates_measured_from_runs_predict_these_runs(settings):
    made = write_runs(settings)
    write_rates(settings, made)
    table = comparison.compare(plan.plan(settings), made)
    assert comparison.misses(table) == []
    assert table.loc["all", ["tokens_ratio", "test_runs_ratio", "fresh_runs_ratio"]].tolist() == pytest.approx(
        [1, 1, 1]
    )
    assert table.drop("all").tokens_ratio.dropna().tolist() == pytest.approx(
        [1] * table.drop("all").tokens_ratio.count()
    )


def test_the_prediction_follows_its_formulas(settings):
    write_rates(settings, write_runs(settings))
    small = {phase.phase: phase for phase in plan.plan(settings).phases}
    more = config.load("smoke", {"tasks.test": 8, "training.passes": 3, "workers": 1})
    large = {phase.phase: phase for phase in plan.plan(more).phases}
    assert large["sft test"].tokens == 2 * small["sft test"].tokens
    assert large["sft test"].seconds == 4 * small["sft test"].seconds == pytest.approx(8 * 5 * 0.5)
    assert large["sft train 1"].trained_tokens == 3 * small["sft train 1"].trained_tokens
    assert "sft longer" not in {p.phase for p in plan.plan(config.load("smoke", {"tasks.longer": 0})).phases}


@pytest.mark.parametrize("exam", sorted(EXAMS))
def test_the_plan_knows_how_many_tasks_an_exam_has(exam, settings):
    settings = config.load("smoke", {"tasks.diagnostic": 2})
    assert exam_size(EXAMS[exam], settings) == len(Experiment("base", settings, Fleet(1)).exam_tasks(exam))


def test_a_kind_that_was_never_measured_is_named(settings):
    write_rates(settings, write_runs(settings))
    with pytest.raises(DataError, match="mixed train.*--measure"):
        plan.plan(config.load("smoke", {"dagger.rounds": 2}))


def test_the_check_needs_runs_and_fails_when_the_prediction_misses(settings, capsys):
    made = write_runs(settings)
    write_rates(settings, made)
    assert cli.main(["plan", "--profile", "smoke", "--check"]) == 0
    measured = json.loads(rates.rates_file().read_text())
    for rate in measured["rates"].values():
        rate["turns"] = 3 * rate.get("turns", 0)
    write_json(rates.rates_file(), measured)
    assert cli.main(["plan", "--profile", "smoke", "--check"]) == 1
    assert "test_runs: predicted" in capsys.readouterr().out
    assert cli.main(["plan", "--profile", "smoke", "--seed", "7", "--check"]) == 2
    assert "have not run" in capsys.readouterr().err


def test_seconds_come_from_the_fleets_own_lines(settings):
    used = usage.count(write_runs(settings))
    titles = {phase.phase.replace("collect 1", "round 1/1"): phase.kind for phase in used if phase.turns}
    lines = [progress_line(title, 1, 1, cohort(2, "t"), 5.0) for title in titles]
    assert rates.seconds_per_turn(lines, used) == dict.fromkeys(titles.values(), 0.5)
    with pytest.raises(DataError, match="base longer"):
        rates.seconds_per_turn([line for line in lines if "base longer" not in line], used)


def test_rates_are_measured_and_checked_from_the_command_line(settings, tmp_path, monkeypatch, capsys):
    used = usage.count(write_runs(settings))
    titles = [phase.phase.replace("collect 1", "round 1/1") for phase in used if phase.turns]
    log = tmp_path / "executed.log"
    monkeypatch.setattr(rates, "time_grading", lambda: 2.0)
    command = ["plan", "--profile", "smoke", "--measure", "--log", str(log)]
    assert cli.main(command) == 2 and "name logs or executed notebooks with --log" in capsys.readouterr().err
    log.write_text("\n".join(progress_line(title, 1, 1, cohort(2, "t"), 5.0) for title in titles), encoding="utf-8")
    assert cli.main(command) == 0 and str(rates.rates_file()) in capsys.readouterr().out
    assert (
        cli.main(["plan", "--profile", "smoke", "--log", str(log)]) == 2 and "add --measure" in capsys.readouterr().err
    )
    assert cli.main(["plan", "--profile", "smoke", "--check"]) == 0
    assert "holds within a factor of 2" in capsys.readouterr().out


def test_a_label_costs_no_test_run_and_an_empty_patch_is_not_run(settings):
    run = Experiment("base", settings, Fleet(1))
    empty = trajectory("a", [FINISH], patch="")
    label = Label("a", 0, 1, "base", 0, "student", 0.5, "oracle", "t", TEST, (1,), True)
    run.store.write_cohort(exam_group(run, "test"), 0, CohortRecord((empty,), (label,), {}))
    exam, grading = usage.count(results.runs(settings, run.fleet).values())
    assert exam.test_runs == grading.test_runs == 0 and grading.episodes == 1


@pytest.mark.parametrize("profile", sorted(config.PROFILES))
def test_the_committed_rates_predict_every_profile(profile):
    """Measured ones for the laptop's profiles, assumed ones for the served."""
    predicted = plan.plan(config.load(profile))
    table = predicted.table()
    assert table.drop("all").sum().to_numpy() == pytest.approx(table.loc["all"].to_numpy())
    assert table.loc["all", "minutes"] > 0 and "profile" in predicted.source
    assert "test runs = turns x" in str(predicted) and predicted.source in str(predicted)


# --- served profiles ------------------------------------------------------------------------------------------------

H200 = scale.gpus()["NVIDIA H200"]


def test_a_served_plan_says_that_its_rates_are_assumed_and_where_from():
    text = str(plan.plan(config.load("qwen3-4b")))
    assert "ASSUMED for profile qwen3-4b on one NVIDIA H200" in text
    for name, row in scale.assumptions().items():
        assert f"  {name:<18}" in text and row["source"] in text
    for part in (
        "GPU memory in GB",
        "NVIDIA H100 80GB: does not fit",
        "teacher: ",
        "disk: ",
        "images: ",
        "only 200 GB are kept",
        "prefill_mfu",
    ):
        assert part in text
    assert "GB are kept" not in str(plan.plan(config.load("qwen3-4b", {"sandbox.images_gb": 1e6})))


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("NVIDIA H100 80GB HBM3", "NVIDIA H100 80GB"),
        ("NVIDIA H100 PCIe", "NVIDIA H100 PCIe"),
        ("NVIDIA H200 NVL", "NVIDIA H200 NVL"),
        ("NVIDIA H200", "NVIDIA H200"),
        ("NVIDIA A100-SXM4-40GB", None),
    ],
)
def test_a_plan_takes_the_rates_of_this_machines_gpu_and_says_where_it_has_none(name, row, monkeypatch):
    monkeypatch.setattr(plan, "local_gpus", lambda: [gpus.LocalGpu(name, 80e9, "1"), gpus.LocalGpu("other", 1e9, "1")])
    source = plan.plan(config.load("qwen3-4b")).source
    assert f"on one {row or 'NVIDIA H200'} (" in source
    assert ("no row for this machine's" in source) == (row is None)


def test_exams_without_labels_take_no_time_of_the_teacher():
    """SWE-bench Verified's are the most of all exams' episodes."""
    seconds = {kind: row["seconds"] for kind, row in scale.rates(config.load("qwen3-4b"), H200).items()}
    assert seconds["student unseen"] == seconds["slips test"] < seconds["student test"] == seconds["base test"]


def test_a_slower_gpu_takes_longer():
    settings = config.load("qwen3-4b", {"teacher.endpoint": "http://localhost:1/v1"})
    sxm, pcie = scale.gpus()["NVIDIA H100 80GB"], scale.gpus()["NVIDIA H100 PCIe"]
    assert scale.train_seconds(settings, pcie) == pytest.approx(scale.train_seconds(settings, sxm) * 989 / 756)


def test_a_turn_of_one_model_follows_its_formula():
    settings = config.load("qwen3-4b", {"teacher.endpoint": "http://localhost:1/v1", "serving.concurrency": 4})
    shape, each = shapes.shape_of(settings.student.path), scale.episode(settings)
    read = each.action + each.observation + 0.05 * each.live
    attended = 4 * shape.layers * shape.heads * shape.head_dim * each.live
    prefill = read * (2 * shape.active + attended) / (989e12 * 0.4)
    decode = each.action * (2 * shape.parameters + 4 * each.live * shape.kv_bytes) / (4.8e12 * 0.5) / 4
    assert scale.at_once(settings, H200) == 4
    assert scale.model_seconds(shape, settings, H200) == pytest.approx(prefill + decode)
    assert scale.turn_seconds(settings, H200, 1.0) == pytest.approx(max(prefill + decode, 3.0 / 4))


def test_a_mean_episode_keeps_to_the_limits():
    assert scale.episode(config.load("qwen3-4b")).turns == 64.3
    short = scale.episode(config.load("qwen3-4b", {"episode.context": 20_000}))
    assert short.length == pytest.approx(20_000) and short.turns < 64.3
    assert scale.episode(config.load("qwen3-0.6b")).turns == pytest.approx(64.3 * 0.3)


def test_few_tokens_touch_few_experts_and_many_touch_all():
    shape = shapes.shape_of("Qwen/Qwen3-Coder-30B-A3B-Instruct")
    one, many = scale._touched(shape, 1), scale._touched(shape, 10_000)
    assert one == pytest.approx(2 * (shape.active + shape.norms)) and many == pytest.approx(
        2 * shape.parameters, rel=0.03
    )


def test_the_teachers_bill_follows_prices_and_labelled_states():
    prices = {"labels.price_prompt": 1.0, "labels.price_cached": 0.1, "labels.price_completion": 4.0}
    settings = config.load("qwen3-0.6b", prices)
    phases = plan.plan(settings).phases
    queries, tokens = footprint.teacher_tokens(settings, phases)
    phases = [phase for phase in phases if not phase.phase.endswith(("test-sampled", "test-slips", "longer", "unseen"))]
    assert queries == pytest.approx(sum(phase.turns for phase in phases))
    expected = (tokens.prompt - tokens.cached) + 0.1 * tokens.cached + 4.0 * tokens.completion
    assert footprint.money(settings, tokens) == pytest.approx(expected / 1e6)
    fewer = config.load("qwen3-0.6b", prices | {"labels.states": "kth", "labels.k": 4})
    turns = {who: sum(phase.turns for phase in phases if phase.kind.startswith(who)) for who in ("teacher", "switch")}
    mixed = [phase.turns for phase in phases if phase.kind == "mixed train"]  # of round 2, in which beta is 0.8
    alone = queries - sum(turns.values()) - sum(mixed)
    asked = turns["teacher"] + turns["switch"] * 5 / 8 + sum(mixed) * (1 - 0.2 * 3 / 4) + alone / 4
    assert len(mixed) == 1 and footprint.teacher_tokens(fewer, phases)[0] == pytest.approx(asked)
    assert "no price is set" in footprint.report(config.load("qwen3-0.6b"), phases)


def test_images_are_counted_once_each():
    assert footprint.pulls(config.load("qwen3-4b"))[0] == 2338 + 100 + 500
    assert footprint.pulls(config.load("qwen3-0.6b"))[0] == 2 * 16 + 16 + 16
    assert footprint.pulls(config.load("tiny")) == (0, 0.0)


def test_images_that_do_not_fit_are_pulled_again_by_every_phase():
    settings = config.load("qwen3-4b")
    phases = plan.plan(settings).phases
    most = footprint.pulls_at_most(settings, phases)
    assert most == sum(phase.episodes for phase in phases if not phase.kind.startswith("training")) > 3 * 2560
    assert f"{most:,} at the most (only 200 GB are kept" in footprint.report(settings, phases)
    roomy = config.load("qwen3-4b", {"sandbox.images_gb": 10_000.0})
    assert footprint.pulls_at_most(roomy, phases) == 2938
    tiny = config.load("tiny")
    assert footprint.pulls_at_most(tiny, plan.plan(tiny).phases) == 0


def test_the_hours_of_all_phases_are_the_plans(settings):
    predicted = plan.plan(config.load("qwen3-8b"))
    assert 60 * sum(footprint.hours(predicted.phases).values()) == pytest.approx(
        predicted.table().loc["all", "minutes"]
    )


@pytest.mark.parametrize("profile", ["tiny", "qwen3-4b"])
def test_the_notebooks_needs_add_up_to_the_plan(profile):
    settings = config.load(profile)
    predicted = plan.plan(settings)
    found = [phase for number in ("02", "03", "04", "05") for phase in needs.phases(predicted, number)]
    assert sum(phase.episodes for phase in needs.phases(predicted, "06")) == (3600 if profile == "qwen3-4b" else 0)
    assert sorted(phase.phase for phase in found) == sorted(phase.phase for phase in predicted.phases)
    assert "collects and trains nothing" in needs.text(settings, "05")
    assert ("GPU of 99 GB" in needs.text(settings, "04")) == (profile == "qwen3-4b")


@pytest.mark.parametrize("number", ["02", "03", "04", "05", "06"])
def test_a_notebook_states_for_every_profile_what_it_needs_and_takes(number):
    found = needs.table(number)
    assert list(found.index) == list(config.PROFILES)
    said = needs.text(config.load("smoke"), number)
    for profile in config.PROFILES:
        spent = needs.phases(plan.plan(config.load(profile)), number)
        row, models = found.loc[profile], any(phase.turns for phase in spent)
        assert row.episodes == f"{sum(phase.episodes for phase in spent if phase.turns):,.0f}"
        assert (row.GPU != "none") == (models and config.load(profile).served) == (row["teacher's queries"] != "0")
        assert (row.episodes, row.disk) == ("0", "0") or models
        assert (row.time == "0.0 minutes") == (not spent)
        assert f"\n{profile}" in said


def test_notebook_06_needs_docker_for_real_tasks_and_no_gpu(tmp_path, monkeypatch):
    monkeypatch.setattr(needs, "local_gpus", lambda: pytest.fail("a reader of results looks at no GPU"))
    said = needs.text(config.load("qwen3-4b"), "06", patches=28)
    assert "collects and trains nothing" in said and "3,628 patches are graded, 15.1 hours" in said  # 3,628 x 120 s / 8
    table = needs.table("06", 28)  # and 100 + 500 gold patches, and 500 by the command line: gold twice, four recipes
    row, tiny = table.loc["qwen3-4b"], table.loc["tiny"]
    assert row["pull hours"] == "34"  # of 128 + 500 images at their own grading, and of 500 once for the command line
    assert (row.GPU, row.Docker, row.patches) == ("none", "yes", "3,628") and (tiny.Docker, tiny.patches) == (
        "no",
        "28",
    )


def test_needs_refuse_a_gpu_that_is_too_small(tmp_path, monkeypatch):
    """nvidia-smi is a real program that tells of a smaller GPU."""
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'NVIDIA H100 80GB HBM3, 81559, 570.86.15'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    with pytest.raises(ConfigError, match="'qwen3-4b' does not fit this GPU.*-p teacher.path=Qwen.*-FP8"):
        needs.text(config.load("qwen3-4b"), "04")
    smaller = config.load("qwen3-4b", {"teacher.path": "Qwen/Qwen3-Coder-30B-A3B-Instruct-FP8"})
    assert "on one NVIDIA H100 80GB" in needs.text(smaller, "04")
    assert "on one NVIDIA H100 80GB" in needs.text(config.load("qwen3-0.6b"), "04")
