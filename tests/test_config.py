"""Profiles, strict settings, and the folders of a run."""

from __future__ import annotations

import dataclasses
import os
import stat
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dagger_nb import config, deviations, notebook, paths, profiles, provenance
from dagger_nb.errors import ConfigError, EnvironmentProblem

SERVED = ("qwen3-0.6b", "qwen3-4b", "qwen3-8b")


@pytest.mark.parametrize("profile", sorted(config.PROFILES))
def test_every_profile_loads(profile: str) -> None:
    settings = config.load(profile)
    assert settings.profile == profile
    assert (profile in profiles.LAPTOP_GB) == (not settings.served)


def test_profiles_set_the_same_names() -> None:
    """Budgets in the laptop's, and in the served ones the same budgets and the same further names."""
    laptop = {frozenset(config.PROFILES[name]) for name in ("smoke", "tiny", "study")}
    served = {frozenset(config.PROFILES[name]) for name in SERVED}
    assert len(laptop) == len(served) == 1 and laptop.pop() < served.pop()


@pytest.mark.parametrize("profile", SERVED)
def test_a_served_profile_loses_no_finished_episode_to_a_kill(profile):
    """Cohorts are written whole, and one of these episodes may take an hour."""
    assert config.load(profile).episode.cohort == 1


# --- the paper --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", SERVED)
def test_every_difference_from_the_paper_has_a_number(profile: str) -> None:
    settings = config.load(profile).to_dict()
    mine = {name: settings[name.partition(".")[0]][name.partition(".")[2]] for name in deviations.PAPER}
    differing = {name for name, value in deviations.PAPER.items() if mine[name] != value}
    explained = {name for each in deviations.DEVIATIONS if each.holds(config.load(profile)) for name in each.of}
    assert differing == explained


def test_every_setting_that_a_deviation_explains_exists() -> None:
    assert {name for each in deviations.DEVIATIONS for name in each.of} <= set(deviations.PAPER)
    assert set(deviations.PAPER) <= set(config.setting_names())


def test_deviations_are_printed_with_the_profiles_own_values() -> None:
    table = deviations.deviations(config.load("qwen3-8b"))
    assert table.index.is_unique and table.here.str.contains("40,960").any()
    assert "{" not in deviations.text(config.load("qwen3-4b")) and "rank 32" in deviations.text(config.load("qwen3-4b"))
    assert not deviations.deviations(config.load("qwen3-4b")).here.str.contains("40,960").any()
    assert len(deviations.deviations(config.load("tiny"))) == 1


def test_a_notebook_prints_the_differences_of_real_tasks_and_none_of_a_laptops(capsys) -> None:
    notebook.differences(config.load("tiny"))
    assert capsys.readouterr().out == ""
    notebook.differences(config.load("qwen3-4b"))
    said = capsys.readouterr().out
    assert said.startswith("where profile qwen3-4b leaves the paper:") and "rank 32" in said


def test_an_override_that_leaves_the_paper_has_a_number_too() -> None:
    plain = deviations.deviations(config.load("qwen3-4b"))
    fewer = {"dagger.rounds": 3, "teacher.path": "Qwen/Qwen3-Coder-30B-A3B-Instruct-FP8", "tasks.unseen": 466}
    fewer |= {"labels.states": "student", "training.lesson_weight": 3.0}
    table = deviations.deviations(config.load("qwen3-4b", fewer))
    added = table.drop(plain.index).here.tolist()
    assert added == [f"{fewer['teacher.path']}: its linear layers in 8 bits", "dagger.rounds = 3",
                     "training.lesson_weight = 3.0", "labels.states = student"]  # fmt: skip
    assert table.index.is_unique


def test_overrides_reach_their_setting_and_nothing_else() -> None:
    plain = config.load("tiny")
    changed = config.load("tiny", {"training.passes": 7, "seed": 3, "training.clip": 2})
    assert (changed.training.passes, changed.seed) == (7, 3)
    assert type(changed.training.clip) is float
    training = dataclasses.replace(changed.training, passes=plain.training.passes, clip=plain.training.clip)
    assert dataclasses.replace(changed, seed=0, training=training) == plain


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("training.pases", 2, "did you mean 'training.passes'?"),
        ("passes", 2, "did you mean 'training.passes'?"),
        ("training", 2, "unknown setting"),
        ("profile", "tiny", "unknown setting"),
        ("training.passes", 0, "at least 1"),
        ("training.passes", 2.0, "a whole number, not float"),
        ("training.passes", True, "a whole number, not bool"),
        ("training.passes", "2", "a whole number, not str"),
        ("training.clip", float("nan"), "finite"),
        ("training.clip", 0, "more than 0"),
        ("training.aggregation", "unoin", "did you mean 'union'?"),
        ("student.quantise", 1, "True or False"),
        ("evaluation.slip_rate", 1.5, "at most 1"),
    ],
)
def test_a_wrong_override_is_refused_by_name(name: str, value: object, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config.load("tiny", {name: value})
    assert name in str(caught.value) and said in str(caught.value)


def test_a_key_put_where_its_variables_name_belongs_is_refused_and_not_shown() -> None:
    for key in ("sk-abc123", "hf_AbC", "0XYZ"):
        with pytest.raises(ConfigError, match="the name, in capitals, of the environment variable") as caught:
            config.load("tiny", {"teacher.key_variable": key})
        assert key not in str(caught.value)
    assert config.load("tiny", {"teacher.key_variable": "MY_KEY_2"}).teacher.key_variable == "MY_KEY_2"


@pytest.mark.parametrize(
    "url", ["localhost:8000", "secret@host/v1", "http://user:secret@host/v1", "https://host/v1?api-key=secret"]
)
def test_an_address_that_holds_a_secret_or_is_none_is_refused_and_not_shown(url) -> None:
    with pytest.raises(ConfigError, match="teacher.endpoint.*teacher.key_variable") as caught:
        config.load("qwen3-4b", {"teacher.endpoint": url})
    assert "secret" not in str(caught.value)


def test_one_model_under_two_names_is_no_teacher_of_itself(tmp_path) -> None:
    folder = tmp_path / "Qwen3-4B"
    folder.mkdir()
    for teacher, student, endpoint in (
        ("./data/base", "data/base", ""),
        ("Qwen/Qwen3-4B", str(folder), ""),
        (str(folder), "qwen/qwen3-4b", ""),
    ):
        with pytest.raises(ConfigError, match="labels itself"):
            config.load("tiny", {"teacher.path": teacher, "student.path": student, "teacher.endpoint": endpoint})
    other = {"teacher.path": "someone/Qwen3-4B", "student.path": "Qwen/Qwen3-4B"}
    assert config.load("tiny", other).teacher.path == "someone/Qwen3-4B"
    away = {"teacher.path": "Qwen3-4B", "student.path": str(folder), "teacher.endpoint": "http://localhost:1/v1"}
    assert config.load("tiny", away).teacher.endpoint


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        ({"serving.weights": "bf16"}, "would be served on another"),
        ({"student.quantise": False, "serving.weights": "nf4"}, "use 'bf16'"),
        ({"student.quantise": False}, "use 'bf16'"),
        ({"teacher.style": "native"}, "teacher.style = 'native'"),
        ({"lora.rank": 513}, "lora.rank = 513"),
    ],
)
def test_what_cannot_be_served_here_is_refused(overrides: dict[str, object], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        config.load("qwen3-4b", overrides)
    assert config.load("qwen3-4b", {"student.quantise": False, "serving.weights": "bf16"}).served
    elsewhere = {"teacher.style": "native", "teacher.endpoint": "http://localhost:1/v1"}
    assert config.load("qwen3-4b", elsewhere).teacher.style == "native"


@pytest.mark.parametrize("limit", ["money", "round_money"])
def test_a_limit_on_money_needs_prices(limit: str) -> None:
    prices = {"labels.price_prompt": 0.1, "labels.price_completion": 0.4}
    for left_out in prices:
        with pytest.raises(ConfigError, match="limits nothing"):
            config.load("qwen3-4b", {f"labels.{limit}": 10.0} | {k: v for k, v in prices.items() if k != left_out})
    assert config.load("qwen3-4b", {f"labels.{limit}": 10.0} | prices).labels.price_completion == 0.4


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        ({"episode.max_new_tokens": 512, "episode.context": 512}, "episode.max_new_tokens"),
        ({"teacher.path": "some/model", "student.path": "some/model"}, "teacher.path"),
        ({"tasks.tasks_per_round": 0}, "tasks.tasks_per_round"),
        ({"dagger.rounds": 0}, "dagger.rounds"),
        ({"tasks.test": 0}, "tasks.test"),
        ({"student.path": " "}, "student.path"),
        ({"teacher.path": ""}, "teacher.path"),
        ({"teacher.path": "some/Model/", "student.path": "some/model"}, "teacher.path"),
        ({"tasks.source": "swe_gym"}, "tasks.source.*did you mean 'swe-gym'"),
        ({"tasks.source": "own.csv"}, "tasks.source"),
        ({"tasks.source": "swe-gym", "sandbox.back_end": "docker"}, "teacher.path = 'scripted'"),
        ({"tasks.source": "swe-gym", "teacher.path": "some/model"}, "sandbox.back_end"),
    ],
)
def test_settings_that_cannot_work_are_refused(overrides: dict[str, object], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        config.load("tiny", overrides)


def test_a_context_too_small_for_real_tasks_is_refused() -> None:
    with pytest.raises(ConfigError, match="episode.context = 8192 is too small .* at least 16384"):
        config.load("qwen3-4b", {"episode.context": 8192})
    assert config.load("tiny", {"tasks.source": "own.jsonl"}).tasks.source == "own.jsonl"


def test_an_unknown_profile_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'tiny'"):
        config.load("tinny")


@settings(deadline=None)  # a busy machine is no failure
@given(
    st.dictionaries(
        st.text() | st.sampled_from(config.setting_names()),
        st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.integers()),
        max_size=3,
    )
)
def test_any_override_gives_settings_or_a_config_error(overrides: dict[str, object]) -> None:
    try:
        settings = config.load("smoke", overrides)
    except ConfigError as error:
        assert "\n" not in str(error) or any("\n" in str(part) for item in overrides.items() for part in item)
    else:
        assert len(settings.digest()) == 64


def test_the_digest_follows_what_decides_the_result() -> None:
    digests = [
        config.load("tiny").digest(),
        config.load("smoke").digest(),
        config.load("tiny", {"seed": 1}).digest(),
        config.load("tiny", {"training.passes": 9}).digest(),
        config.load("tiny", {"threads": 2}).digest(),
    ]
    assert len(set(digests)) == len(digests)
    assert config.load("tiny", {"workers": 9}).digest() == digests[0]
    assert config.load("tiny", {"training.clip": 1}).digest() == config.load("tiny", {"training.clip": 1.0}).digest()


def test_settings_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.load("tiny").training.passes = 2  # type: ignore[misc]


@pytest.mark.parametrize(
    ("override", "same"),
    [
        ({"serving.concurrency": 4}, True),
        ({"training.head_rows": 2048, "training.row_tokens": 32_768, "training.save_steps": 5}, True),
        ({"training.passes": 2}, False),
    ],
)
def test_what_fits_a_machine_does_not_name_a_run(override: dict[str, object], same: bool) -> None:
    """The advice after a lack of memory must not cost the episodes that were collected."""
    folders = [provenance.run_folder("sft", config.load("qwen3-4b", each)) for each in ({}, override)]
    assert (folders[0] == folders[1]) is same


def test_the_project_is_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert (paths.project() / "pyproject.toml").is_file()
    assert paths.data() == paths.project() / "data"


def test_home_moves_what_is_written_and_keeps_inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(paths.HOME_VARIABLE, str(tmp_path))
    assert paths.run_folder("sft", 2, "0123456789abcdef") == tmp_path / "data" / "runs" / "sft-s2-01234567"
    assert paths.figures() == tmp_path / "figures"
    assert paths.report_folder("tiny", 0) == tmp_path / "reports" / "tiny-s0"
    assert paths.data() == paths.project() / "data"


def test_a_file_in_the_place_of_a_folder_is_explained(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file")
    with pytest.raises(EnvironmentProblem, match=paths.HOME_VARIABLE):
        paths.writable(tmp_path / "data" / "runs")


def test_no_write_permission_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may write anywhere, so the refusal itself is simulated; everything around it is real."""
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    if os.geteuid() == 0:
        monkeypatch.setattr(paths.tempfile, "TemporaryFile", refuse)
    with pytest.raises(EnvironmentProblem, match="Permission denied"):
        paths.writable(tmp_path)
