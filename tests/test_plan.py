"""The prediction against runs made up by hand: small records with known counts, written through the real store."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from dagger_nb import config, paths, plan, rates, usage
from dagger_nb.config import Settings
from dagger_nb.errors import DataError
from dagger_nb.experiment import EXAMS, Experiment, identity
from dagger_nb.fleet import progress_line
from dagger_nb.recipes import RECIPES, recipe
from dagger_nb.records import Action, Label, StopReason, Trajectory, Turn, digest
from dagger_nb.results import PROGRAMME
from dagger_nb.store import CohortRecord, RunStore, round_group, write_json

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
    """The smoke profile at home in a temporary folder, with rates of its own."""
    monkeypatch.setenv("DAGGER_NB_HOME", str(tmp_path))
    monkeypatch.setattr(rates, "rates_file", lambda: tmp_path / "rates.json")
    monkeypatch.setattr(plan, "rates_file", lambda: tmp_path / "rates.json")
    return config.load("smoke")


def write_runs(settings: Settings) -> dict[str, Path]:
    """Every phase that the plan knows, with the same episode everywhere."""
    for name in RECIPES:
        what, chosen = identity(name, settings), recipe(name, settings)
        store = RunStore(paths.run_folder(name, settings.seed, digest(what)), what)
        for round_ in range(1, chosen.rounds + 1):
            store.write_cohort(round_group(round_), 0, cohort(chosen.tasks_per_round, f"train-{round_}"))
            fit = {"adapter": "a" * 64, "examples": chosen.tasks_per_round, "tokens": 1000, "seconds": 5.0}
            write_json(store.root / round_group(round_) / "adapter" / "fit.json", fit)
        student = "a" * 12 if chosen.rounds else "base"
        for exam in map(EXAMS.__getitem__, PROGRAMME[name]):
            group = f"{exam.name}-{settings.evaluation.slip_rate:g}" if exam.slips else exam.name
            size = plan.exam_size(exam, settings)
            store.write_cohort(f"evaluation/{student}/{group}", 0, cohort(size, exam.split))
    return usage.run_folders(settings)


def write_rates(settings: Settings, folders: dict[str, Path]) -> None:
    used = usage.count(folders, settings)
    seconds = {phase.kind: 0.5 for phase in used}
    found = rates.measure(used, seconds, 2.0, settings.training.passes)
    write_json(rates.rates_file(), {"source": "made up", "rates": found})


def test_a_test_run_is_known_by_task_edits_and_command():
    runs = list(usage.pytest_runs(trajectory("a", [TEST, LOOK, TEST, EDIT, TEST])))
    assert len(runs) == 3 and runs[0] == runs[1] != runs[2]
    assert set(runs).isdisjoint(usage.pytest_runs(trajectory("b", [TEST])))


def test_counting_adds_up_the_records(settings):
    phases = {phase.phase: phase for phase in usage.count(write_runs(settings), settings)}
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
    folders = write_runs(settings)
    write_rates(settings, folders)
    table = plan.compare(plan.plan(settings), folders)
    assert plan.misses(table) == []
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
def test_the_plan_knows_how_many_tasks_an_exam_has(exam):
    settings = config.load("smoke", {"tasks.diagnostic": 2})
    taken = Experiment.exam_tasks(SimpleNamespace(settings=settings), exam)
    assert plan.exam_size(EXAMS[exam], settings) == len(taken)


def test_a_kind_that_was_never_measured_is_named(settings):
    write_rates(settings, write_runs(settings))
    with pytest.raises(DataError, match="mixed train.*--measure"):
        plan.plan(config.load("smoke", {"dagger.rounds": 2}))


def test_the_check_needs_runs_and_fails_when_the_prediction_misses(settings, capsys):
    folders = write_runs(settings)
    write_rates(settings, folders)
    assert plan.main(["--profile", "smoke", "--check"]) == 0
    measured = json.loads(rates.rates_file().read_text())
    for rate in measured["rates"].values():
        rate["turns"] = 3 * rate.get("turns", 0)
    write_json(rates.rates_file(), measured)
    assert plan.main(["--profile", "smoke", "--check"]) == 1
    assert "test_runs: predicted" in capsys.readouterr().out
    assert plan.main(["--profile", "smoke", "--seed", "7", "--check"]) == 2
    assert "have not run" in capsys.readouterr().err


def test_seconds_come_from_the_fleets_own_lines(settings):
    used = usage.count(write_runs(settings), settings)
    titles = {phase.phase.replace("collect 1", "round 1/1"): phase.kind for phase in used if phase.turns}
    lines = [progress_line(title, 1, 1, cohort(2, "t"), 5.0) for title in titles]
    assert rates.seconds_per_turn(lines, used) == dict.fromkeys(titles.values(), 0.5)
    with pytest.raises(DataError, match="base longer"):
        rates.seconds_per_turn([line for line in lines if "base longer" not in line], used)


def test_a_label_costs_no_test_run_and_an_empty_patch_is_not_run(settings):
    store = RunStore(paths.run_folder("base", 0, digest(identity("base", settings))), identity("base", settings))
    empty = trajectory("a", [FINISH], patch="")
    label = Label("a", 0, 1, "base", 0, "student", 0.5, "oracle", "t", TEST, (1,), True)
    store.write_cohort("evaluation/base/test", 0, CohortRecord((empty,), (label,), {}))
    exam, grading = usage.count(usage.run_folders(settings), settings)
    assert exam.test_runs == grading.test_runs == 0 and grading.episodes == 1


@pytest.mark.parametrize("profile", sorted(config.PROFILES))
def test_the_committed_rates_predict_every_profile(profile):
    predicted = plan.plan(config.load(profile))
    table = predicted.table()
    assert (table.drop("all").sum() == pytest.approx(table.loc["all"])) and table.loc["all", "minutes"] > 0
    assert "profile" in predicted.source and "test runs = turns x" in str(predicted) and "minutes" in str(predicted)
