"""The episode loop and the model inside it: who acts, what is kept, and how an episode ends."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from transformers import AutoModelForCausalLM

from dagger_nb.base.reenact import Reenactment
from dagger_nb.episode import Conditions, Limits, Plan, Rollout
from dagger_nb.errors import BudgetError, DataError, SandboxError
from dagger_nb.labelling import label_trajectory
from dagger_nb.mixing import STUDENT_ALONE, TEACHER_ALONE, BernoulliMixer, Schedule, SwitchMixer
from dagger_nb.policies import teacher
from dagger_nb.policies.local import ATTENTION, Cohort, _choose
from dagger_nb.policies.protocol import Sampling
from dagger_nb.records import Action, StopReason, Trajectory
from dagger_nb.rollout import run_cohort
from dagger_nb.sandboxes.protocol import CommandResult
from dagger_nb.tasks import generate

GREEDY = Sampling(max_new_tokens=8)
HOT = Sampling(0.7, 0.9, 8)


# --- the model -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tiny_base, one_thread):
    torch.manual_seed(0)
    found = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32).eval()
    for parameter in found.parameters():  # away from ties: a random model's logits are nearly equal
        parameter.data *= 3.0 if parameter.ndim == 2 else 1.0
    return found


@pytest.fixture
def cohort(model, renderer):
    model.set_attn_implementation(ATTENTION)

    def make(slots: int, limit: int = 512) -> Cohort:
        return Cohort(model, slots, end_id=renderer.end_id, limit=limit)

    return make


def prompts(count: int, vocabulary: int = 400) -> list[list[int]]:
    rng = np.random.default_rng(7)
    return [rng.integers(3, vocabulary, int(length)).tolist() for length in rng.integers(3, 40, count)]


def plain_greedy(model, prompt: Sequence[int], new: int, end: int) -> tuple[int, ...]:
    model.set_attn_implementation("sdpa")
    ids = torch.tensor([prompt])
    out = model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=new, eos_token_id=end
    )
    model.set_attn_implementation(ATTENTION)
    return tuple(out[0, len(prompt) :].tolist())


def test_cached_decoding_over_many_turns_equals_plain_greedy_generation(model, cohort, renderer):
    """Three turns in five slots of different length, with text read between the turns."""
    session, texts = cohort(5), prompts(5)
    for slot, prompt in enumerate(texts):
        session.extend(slot, prompt)
    for turn in range(3):
        slots = [slot for slot in range(5) if (slot + turn) % 4]
        before = {slot: list(session.tokens[slot]) for slot in slots}
        said = session.generate(slots, GREEDY, {})
        for slot in slots:
            assert said[slot] == plain_greedy(model, before[slot], GREEDY.max_new_tokens, renderer.end_id)
            assert session.tokens[slot] == [*before[slot], *said[slot]]
            session.extend(slot, [5, 6, 7 + turn])


def test_a_slot_does_not_depend_on_its_neighbours(cohort):
    texts = prompts(6)
    together = cohort(6)
    for slot, prompt in enumerate(texts):
        together.extend(slot, prompt)
    said = together.generate(range(6), GREEDY, {})
    for slot, prompt in enumerate(texts):
        alone = cohort(1)
        alone.extend(0, prompt)
        assert alone.generate([0], GREEDY, {})[0] == said[slot]


def test_a_slots_luck_is_its_own(cohort):
    def speak(slots: Sequence[int]) -> dict[int, tuple[int, ...]]:
        session = cohort(4)
        for slot, prompt in enumerate(prompts(4)):
            session.extend(slot, prompt)
        return session.generate(slots, HOT, {slot: np.random.default_rng(slot) for slot in slots})

    every = speak(range(4))
    assert speak(range(4)) == every
    assert speak([3, 1]) == {slot: every[slot] for slot in (1, 3)}


def test_rewinding_forgets_and_saying_the_same_again_costs_nothing(model, cohort):
    session, (prompt, *_) = cohort(1), prompts(1)
    session.extend(0, prompt)
    first = session.generate([0], GREEDY, {})[0]
    session.rewind(0, len(prompt))
    assert session.tokens[0] == prompt
    fed = count_fed(session)
    assert session.generate([0], GREEDY, {})[0] == first
    assert fed[0] <= 1 + len(first)  # the prompt was not read again
    session.rewind(0, len(prompt))
    session.extend(0, [*first[:3], 9, 9])
    fed[0] = 0
    after = session.generate([0], GREEDY, {})[0]
    assert fed[0] <= 2 + len(after)
    fresh = cohort(1)
    fresh.extend(0, [*prompt, *first[:3], 9, 9])
    assert fresh.generate([0], GREEDY, {})[0] == after


def count_fed(session: Cohort) -> list[int]:
    """A counter of the columns that the model reads from now on."""
    fed, forward = [0], session._forward

    def counting(slots, ids, columns):
        fed[0] += ids.numel()
        return forward(slots, ids, columns)

    session._forward = counting
    return fed


def test_the_context_is_a_hard_limit(cohort):
    session = cohort(2, limit=20)
    session.extend(0, range(3, 20))
    with pytest.raises(BudgetError, match="context of 20"):
        session.extend(0, [1, 2, 3, 4])
    assert len(session.tokens[0]) == 17
    assert len(session.generate([0], GREEDY, {})[0]) <= 3
    assert len(session.tokens[0]) <= 20


def test_sampling_follows_the_tempered_top_p_distribution():
    logits = torch.tensor([[2.0, 1.0, 0.5, 0.0, -1.0, -2.0]])
    draws = np.random.default_rng(11)
    n = 6000
    counts = Counter(_choose(logits.repeat(n, 1), Sampling(0.7, 0.9), [draws] * n))
    p = torch.softmax(logits[0].double() / 0.7, dim=0)
    kept = int((p.cumsum(0) - p < 0.9).sum())
    assert set(counts) == set(range(kept)) and kept < len(p)
    expected = (p[:kept] / p[:kept].sum() * n).tolist()
    assert chisquare([counts[i] for i in range(kept)], expected).pvalue > 0.001


def test_a_small_top_p_and_a_low_temperature_are_greedy():
    logits = torch.randn(50, 30, generator=torch.Generator().manual_seed(0))
    draws = [np.random.default_rng(i) for i in range(50)]
    best = logits.argmax(-1).tolist()
    assert _choose(logits, Sampling(1.0, 1e-9), draws) == best
    assert _choose(logits, Sampling(1e-4, 1.0), draws) == best
    assert _choose(logits, Sampling(0.0), [None] * 50) == best


# --- the loop ------------------------------------------------------------------------------------------------


class Script:
    """A session in which the student says given texts, and which counts what it is asked and told."""

    def __init__(self, renderer, slots: int, lines: Mapping[int, Sequence[str]] | Sequence[str]) -> None:
        self.renderer, self.lines = renderer, lines
        self.tokens: list[list[int]] = [[] for _ in range(slots)]
        self.spoken: Counter[int] = Counter()

    def extend(self, slot: int, ids: Sequence[int]) -> None:
        self.tokens[slot].extend(ids)

    def rewind(self, slot: int, length: int) -> None:
        del self.tokens[slot][length:]

    def generate(self, slots, sampling, draws) -> dict[int, tuple[int, ...]]:
        said = {}
        for slot in slots:
            lines = self.lines[slot] if isinstance(self.lines, Mapping) else self.lines
            text = lines[min(self.spoken[slot], len(lines) - 1)]
            said[slot] = (*self.renderer.tokenizer.encode(text, add_special_tokens=False), self.renderer.end_id)
            self.spoken[slot] += 1
            self.tokens[slot].extend(said[slot])
        return said


class Replays:
    """A factory of sandboxes without processes; it can be told to fail at a command of a task."""

    name = "replay"

    def __init__(self, fail_at: Mapping[str, str] | None = None) -> None:
        self.fail_at, self.closed = fail_at or {}, []

    def open(self, task):
        if self.fail_at.get(task.instance_id) == "open":
            raise SandboxError("no room to open")
        return Replay(task, self)

    def guarantees(self) -> dict[str, str]:
        return {}


class Replay(Reenactment):
    def __init__(self, task, factory: Replays) -> None:
        super().__init__(task)
        self.task, self.factory = task, factory

    def run(self, command: str, timeout_s: float | None = None) -> CommandResult:
        if self.factory.fail_at.get(self.task.instance_id) == command:
            raise SandboxError(f"the sandbox broke at {command}")
        if command.startswith("echo"):
            return CommandResult(command[5:], 0)
        return super().run(command, timeout_s)

    def diff(self) -> str:
        if self.factory.fail_at.get(self.task.instance_id) == "diff":
            raise SandboxError("the sandbox broke at the diff")
        return "".join(self._diff())

    def close(self) -> None:
        self.factory.closed.append(self.task.instance_id)


def call(command: str) -> str:
    return f'Go.\n<tool_call>\n{{"name": "execute_bash", "arguments": {{"command": "{command}"}}}}\n</tool_call>'


FINISH = '<tool_call>\n{"name": "finish", "arguments": {}}\n</tool_call>'
BUSY = [call(f"echo {n}") for n in range(50)]


def play(renderer, tasks, lines, mixer=STUDENT_ALONE, *, factory=None, session=None, **more) -> list[Rollout]:
    session = session or Script(renderer, len(tasks), lines)
    conditions = Conditions(mixer, GREEDY, 0, "base", **more)
    plans = [Plan(task) for task in tasks]
    return run_cohort(
        plans, conditions, session=session, teacher=teacher.label, renderer=renderer, factory=factory or Replays()
    )


def trajectory(renderer, task, lines, **more) -> Trajectory:
    return play(renderer, [task], lines, **more)[0].trajectory


def test_the_teacher_alone_solves_and_the_student_is_never_asked(renderer, train_tasks):
    session = Script(renderer, 4, BUSY)
    for rollout in play(renderer, train_tasks, BUSY, TEACHER_ALONE, session=session):
        found = rollout.trajectory
        assert found.stop is StopReason.FINISH and found.patch
        assert {turn.actor for turn in found.turns} == {"teacher"} and rollout.shadows == {}
        assert all(turn.beta == 1.0 and 0 <= turn.draw < 1 for turn in found.turns)
    assert not session.spoken


def test_the_student_alone_acts_as_it_said(renderer, train_tasks):
    found = trajectory(renderer, train_tasks[0], [BUSY[0], "no call", FINISH])
    assert [turn.actor for turn in found.turns] == ["student"] * 3
    assert [turn.action.tool for turn in found.turns] == ["execute_bash", "", "finish"]
    assert [turn.observation for turn in found.turns] == ["0", "ERROR: no <tool_call> in the reply", ""]
    for turn in found.turns:
        assert renderer.parse(turn.token_ids) == turn.action and turn.token_ids[-1] == renderer.end_id
        assert turn.observation_tokens == len(renderer.observation_ids(turn.observation))
    assert found.prompt_tokens == len(renderer.prompt_ids(train_tasks[0]))


def test_a_mixture_gives_each_turn_to_whom_the_mixer_says(renderer, train_tasks):
    mixer = BernoulliMixer(Schedule("constant", start=0.5))
    actors = Counter()
    for rollout in play(renderer, train_tasks, BUSY, mixer, limits=Limits(max_turns=12)):
        found = rollout.trajectory
        for turn in found.turns:
            choice = mixer.choose(0, 1, found.instance_id, 0, turn.index)
            assert (turn.actor == "teacher", turn.beta, turn.draw) == (choice.teacher_acts, choice.beta, choice.draw)
            if turn.actor == "teacher":
                task = next(task for task in train_tasks if task.instance_id == found.instance_id)
                assert turn.action == teacher.label(task, found.turns[: turn.index])
            actors[turn.actor] += 1
    assert min(actors.values()) > 10


def test_the_switch_hands_over_once(renderer, train_tasks):
    mixer = SwitchMixer(per_round=5)
    for rollout in play(renderer, train_tasks, BUSY, mixer):
        kappa = mixer.kappa(0, 1, rollout.trajectory.instance_id, 0)
        actors = [turn.actor for turn in rollout.trajectory.turns]
        assert actors == ["student"] * kappa + ["teacher"] * (len(actors) - kappa)
        assert rollout.trajectory.stop is StopReason.FINISH


def test_a_shadow_is_asked_everywhere_and_changes_nothing(renderer, train_tasks):
    plain = play(renderer, train_tasks[:2], BUSY, TEACHER_ALONE)
    shadowed = play(renderer, train_tasks[:2], BUSY, TEACHER_ALONE, shadow=True)
    assert [r.trajectory for r in shadowed] == [r.trajectory for r in plain]
    for rollout in shadowed:
        assert sorted(rollout.shadows) == list(range(len(rollout.trajectory.turns)))
        assert rollout.shadows[3].arguments == {"command": "echo 3"}


def test_slips_replace_student_turns_at_their_rate_and_are_told_apart(renderer, train_tasks):
    task = train_tasks[2]
    view = '<tool_call>\n{"name": "str_replace_editor", "arguments": {"command": "view", "path": "%s"}}\n</tool_call>'
    path = sorted(p for p in task.files if not p.startswith("tests/") and len(task.files[p]) > 300)[0]
    lines, limits = [view % path, *BUSY], Limits(max_turns=30, loop_repeats=30)
    found = trajectory(renderer, task, lines, slip_rate=0.5, limits=limits)
    slips = [turn for turn in found.turns if turn.actor == "slip"]
    assert 5 < len(slips) < 25
    assert all(turn.action.arguments["command"] == "str_replace" for turn in slips)
    assert trajectory(renderer, task, lines, slip_rate=0.5, limits=limits) == found
    assert not [t for t in trajectory(renderer, task, lines, limits=limits).turns if t.actor == "slip"]
    sure = play(renderer, [task], lines, TEACHER_ALONE, slip_rate=1.0)[0].trajectory
    assert {turn.actor for turn in sure.turns} == {"teacher"}  # the teacher never slips


@pytest.mark.parametrize("chars", [200, 400])
def test_an_observation_is_as_long_as_the_episode_allows(renderer, train_tasks, chars):
    task = train_tasks[0]
    path = max(task.files, key=lambda path: len(task.files[path]))
    view = '<tool_call>\n{"name": "str_replace_editor", "arguments": {"command": "view", "path": "%s"}}\n</tool_call>'
    found = trajectory(renderer, task, [view % path, FINISH], limits=Limits(observation_chars=chars))
    head, mark, _ = found.turns[0].observation.partition("\n... ")
    assert mark and len(head) == chars // 2


# --- the end of an episode -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "limits", "stop", "turns"),
    [
        ([BUSY[0], FINISH], Limits(), StopReason.FINISH, 2),
        ([call("echo same")], Limits(loop_repeats=3), StopReason.LOOP, 3),
        (["gibberish"], Limits(loop_repeats=4), StopReason.LOOP, 4),
        (BUSY, Limits(max_turns=7), StopReason.TURNS, 7),
        (BUSY, Limits(seconds=0.0), StopReason.TIME, 1),
        ([call("echo same")], Limits(max_turns=3), StopReason.LOOP, 3),
        ([BUSY[0], FINISH], Limits(max_turns=2), StopReason.FINISH, 2),
        ([FINISH], Limits(max_turns=1, seconds=0.0), StopReason.FINISH, 1),
    ],
)
def test_each_reason_to_stop_is_reached_and_the_first_one_counts(renderer, train_tasks, lines, limits, stop, turns):
    found = trajectory(renderer, train_tasks[0], lines, limits=limits)
    assert (found.stop, len(found.turns)) == (stop, turns)


def test_the_context_ends_an_episode_before_it_overflows(renderer, train_tasks):
    prompt = len(renderer.prompt_ids(train_tasks[0]))
    found = trajectory(renderer, train_tasks[0], BUSY, limits=Limits(context=prompt + 200))
    total = prompt + sum(len(turn.token_ids) + turn.observation_tokens for turn in found.turns)
    last = len(found.turns[-1].token_ids) + found.turns[-1].observation_tokens
    assert found.stop is StopReason.CONTEXT
    assert total >= prompt + 200 > total - last
    loop = trajectory(renderer, train_tasks[0], [call("echo " + "x " * 40)], limits=Limits(context=len(
        renderer.prompt_ids(train_tasks[0])) + total // 3, loop_repeats=2))  # fmt: skip
    assert loop.stop in (StopReason.LOOP, StopReason.CONTEXT)


def test_a_loop_that_also_fills_the_context_is_a_loop(renderer, train_tasks):
    once = trajectory(renderer, train_tasks[0], [call("echo same")], limits=Limits(max_turns=1))
    size = len(once.turns[0].token_ids) + once.turns[0].observation_tokens
    limits = Limits(context=once.prompt_tokens + 2 * size, loop_repeats=2)
    assert trajectory(renderer, train_tasks[0], [call("echo same")], limits=limits).stop is StopReason.LOOP


@pytest.mark.parametrize(("where", "turns"), [("open", 0), ("echo 2", 2), ("diff", 6)])
def test_an_infrastructure_failure_ends_its_own_episode_and_no_other(renderer, train_tasks, where, turns):
    factory = Replays({train_tasks[1].instance_id: where})
    limits = Limits(max_turns=6)
    healthy = play(renderer, train_tasks, BUSY, limits=limits)
    struck = play(renderer, train_tasks, BUSY, limits=limits, factory=factory)
    found = struck[1].trajectory
    assert found.stop is StopReason.INFRASTRUCTURE and found.detail and found.patch == ""
    assert len(found.turns) == turns
    assert [struck[i] for i in (0, 2, 3)] == [healthy[i] for i in (0, 2, 3)]
    assert len(factory.closed) == 4 - (where == "open")


def test_every_visited_state_gets_a_label_with_its_lineage(renderer, train_tasks):
    mixer = BernoulliMixer(Schedule("constant", start=0.5))
    found = trajectory(renderer, train_tasks[0], BUSY, mixer=mixer, limits=Limits(max_turns=10))
    labels = label_trajectory(train_tasks[0], found, teacher=teacher.label, name="oracle-1", renderer=renderer)
    assert [label.turn for label in labels] == list(range(len(found.turns)))
    for label, turn in zip(labels, found.turns, strict=True):
        assert (label.actor, label.beta, label.policy) == (turn.actor, turn.beta, "base")
        assert (label.teacher, label.template) == ("oracle-1", renderer.template_hash)
        assert label.lesson == (turn.actor == "student")  # the script never says what the teacher would
        assert (
            renderer.parse(label.token_ids) == label.action == teacher.label(train_tasks[0], found.turns[: turn.index])
        )


def test_a_real_model_keeps_its_cache_across_turns(renderer, train_tasks, cohort):
    """Tokens fed to the model: each token of an episode once, and at most one more a turn."""
    session = cohort(1, limit=4000)
    fed = count_fed(session)
    found = play(
        renderer, train_tasks[:1], (), session=session, limits=Limits(max_turns=5, context=4000, loop_repeats=9)
    )
    turns = found[0].trajectory.turns
    total = found[0].trajectory.prompt_tokens + sum(len(t.token_ids) + t.observation_tokens for t in turns)
    assert len(turns) == 5
    assert fed[0] <= total + len(turns)


def test_a_cohort_is_the_same_whenever_it_is_run(renderer, train_tasks, cohort, sandboxes):
    mixer = BernoulliMixer(Schedule("constant", start=0.3))

    def once() -> list[Rollout]:
        conditions = Conditions(mixer, HOT, 3, "base", Limits(max_turns=4, context=3000), shadow=True)
        plans = [Plan(task) for task in train_tasks]
        return run_cohort(
            plans, conditions, session=cohort(4, 3000), teacher=teacher.label, renderer=renderer, factory=sandboxes
        )

    assert once() == once()


def test_a_cohort_that_fails_leaves_no_sandbox_open(renderer, train_tasks, monkeypatch):
    """As where the scripted teacher is shown a task that it knows nothing of: a container would stay."""

    def unknown(*_: object) -> None:
        raise DataError("the gold patch does not fit")

    monkeypatch.setattr(teacher, "label", unknown)
    replays = Replays()
    with pytest.raises(DataError):
        play(renderer, train_tasks, (), TEACHER_ALONE, factory=replays)
    assert sorted(replays.closed) == sorted(task.instance_id for task in train_tasks)


def test_a_malformed_reply_of_any_kind_does_not_stop_the_teacher(renderer):
    task = generate("train", 5)
    lines = ["", "<tool_call>", FINISH.replace("{}", '{"x": 1}'), "a\u2028b", call("echo 1")]
    found = trajectory(renderer, task, lines, mixer=SwitchMixer(per_round=5, longest=5))
    assert found.stop is StopReason.FINISH
    assert all(isinstance(turn.action, Action) for turn in found.turns)
