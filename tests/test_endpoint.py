"""The endpoint policy against a real HTTP server that fails on demand, and labels asked for through it."""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
import re
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from players import collected, jobs, silent
from servers import KEY, MODEL, PRICES, THOUGHT, Server, running, usage_of

from dagger_nb import episode, scaffold
from dagger_nb.answers import AnswerFile
from dagger_nb.bill import Account, Bill, Cap, Prices, Tariff, Tokens, bill_table, calls_table
from dagger_nb.collector import Cast, Collector
from dagger_nb.errors import CallLimit, ConfigError, ContextError, EnvironmentProblem, PolicyError
from dagger_nb.evaluation.grading import grade
from dagger_nb.labelling import Labelled, label_episode, label_trajectory, states_to_label
from dagger_nb.mixing import STUDENT_ALONE, BernoulliMixer, Schedule, sampling_seed
from dagger_nb.policies import styles, teacher
from dagger_nb.policies.admission import check
from dagger_nb.policies.endpoint import OUTAGE, EndpointPolicy, Retries
from dagger_nb.policies.oracle import OraclePolicy
from dagger_nb.policies.protocol import Answer, Sampling
from dagger_nb.policies.wire import Failure, same_model
from dagger_nb.records import Action, StopReason, Task, Trajectory, Turn, to_json
from dagger_nb.settings import LabelSettings, TeacherSettings
from dagger_nb.students import Version

GREEDY = Sampling(max_new_tokens=16)
KEY_VARIABLE = "TEACHER_KEY_OF_THE_TESTS"
QUICK = Retries(tries=6, first_s=0.002, longest_s=0.01)
PATIENT = TeacherSettings(path=MODEL, key_variable=KEY_VARIABLE, timeout_s=30.0)
FREE, EVERY = Tariff(), LabelSettings()
STYLES = ("native", "hermes", "qwen3_coder", "text")


@pytest.fixture(scope="module")
def server():
    with running() as found:
        yield found


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv(KEY_VARIABLE, KEY)


@pytest.fixture
def file(tmp_path):
    found = AnswerFile(tmp_path / "answers.sqlite")
    yield found
    found.close()


def asked(
    server: Server,
    file: AnswerFile,
    use: Callable[[EndpointPolicy], Coroutine[Any, Any, Any]],
    *,
    settings: TeacherSettings = PATIENT,
    retries: Retries = QUICK,
    run: str = "run",
    round_: int = 1,
    tariff: Tariff = FREE,
    concurrency: int = 64,
    **more: Any,
) -> Any:
    """What `use` returns of a policy that is opened and closed around it."""

    async def main() -> Any:
        at = replace(settings, endpoint=settings.endpoint or server.url)
        bill = Bill(file, Account(run, round_), tariff)
        policy = EndpointPolicy(at, bill, jitter=random.Random(1), retries=retries, concurrency=concurrency, **more)
        async with policy:
            return await use(policy)

    return asyncio.run(main())


def state(number: int) -> list[dict[str, Any]]:
    return [{"role": "system", "content": "s"}, {"role": "user", "content": f"state {number}"}]


def said(number: int, *, sampling: Sampling = GREEDY) -> Callable[[EndpointPolicy], Coroutine[Any, Any, Action]]:
    async def use(policy: EndpointPolicy) -> Action:
        reply, _ = await policy.reply(state(number), sampling, 0)
        return styles.read(reply["message"], policy.settings.style)

    return use


FRESH = itertools.count(100_000)  # states that no server was asked about


# --- styles -------------------------------------------------------------------------------------------------

AWKWARD = (
    Action("Look.", "execute_bash", {"command": "ls"}),
    Action("", "execute_bash", {"command": ""}),
    Action("a\nb", "execute_bash", {"command": '\ncat <<\'E\'\n</parameter>\n```\n{"x": 1}\n"\nE\n'}),
    Action("é {}", "str_replace_editor", {"command": "view", "path": "/testbed/a.py", "view_range": [1, -1]}),
    Action("n", "str_replace_editor", {"command": "insert", "path": "p", "new_str": "12", "insert_line": 3}),
    Action("r", "str_replace_editor", {"command": "str_replace", "path": "p", "old_str": "  a\n", "new_str": "true"}),
    Action("Done.", "finish", {}),
)


def written(action: Action, style: str) -> dict[str, Any]:
    return styles.render([scaffold.action_message(action)], style)[0]


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("action", AWKWARD, ids=range(len(AWKWARD)))
def test_what_a_style_writes_it_reads(style, action):
    assert styles.read(written(action, style), style) == action


@settings(deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"])), st.sampled_from(STYLES))
def test_any_file_text_survives_every_style(text, style):
    if style == "qwen3_coder" and "</parameter>" in text:
        return  # the format has no way to say where the value ends
    arguments = {"command": "create", "path": "/testbed/a.py", "file_text": text}
    action = Action("Write.", "str_replace_editor", arguments)
    assert styles.read(written(action, style), style) == action


@settings(deadline=None)
@given(st.text(), st.sampled_from(STYLES))
def test_any_reply_whatever_is_read_to_something(text, style):
    action = styles.read({"content": text}, style)
    assert action.malformed == bool(action.error)
    action.raw.encode()


@pytest.mark.parametrize(
    ("style", "message", "error"),
    [
        ("native", {"content": "hm", "tool_calls": None}, "no tool call"),
        ("native", {"content": None, "tool_calls": [{"function": {"name": "fly", "arguments": "{}"}}]}, "unknown tool"),
        (
            "native",
            {"content": "", "tool_calls": [{"function": {"name": "finish", "arguments": "{"}}]},
            "not valid JSON",
        ),
        (
            "native",
            {"content": "", "tool_calls": [{"function": {"name": "finish", "arguments": "[1]"}}]},
            "not an object",
        ),
        ("native", {"content": "", "tool_calls": [{"function": {"name": "finish"}}] * 2}, "more than one"),
        ("hermes", {"content": '<tool_call>{"name": "finish"'}, "no <tool_call>"),
        ("qwen3_coder", {"content": "<tool_call><function=finish>"}, "no <function="),
        ("qwen3_coder", {"content": "<function=fly></function>"}, "unknown tool"),
        (
            "qwen3_coder",
            {
                "content": "<function=str_replace_editor><parameter=command>insert</parameter><parameter=path>p"
                "</parameter><parameter=insert_line>three</parameter></function>"
            },
            "insert_line must be of type int",
        ),
        ("text", {"content": "```json\n{\n```"}, "not valid JSON"),
        ("text", {"content": "```\n[]\n```"}, "not an object"),
        ("text", {"content": ""}, "no fenced block"),
        (
            "text",
            {"content": '```json\n{"name": "execute_bash", "arguments": {"command": "\\ud800"}}\n```'},
            "valid text",
        ),
    ],
)
def test_a_malformed_answer_says_what_is_wrong_with_it(style, message, error):
    action = styles.read(message, style)
    assert action.malformed and error in action.error


def test_reasoning_is_no_part_of_an_action_and_inline_values_are_read():
    text = (
        "<think>a ```json\n{}\n``` b</think>\nGo.\n<function=execute_bash><parameter=command>ls</parameter></function>"
    )
    assert styles.read({"content": text}, "qwen3_coder") == Action("Go.", "execute_bash", {"command": "ls"})


def test_a_reply_in_parts_is_the_text_among_them():
    """As servers of reasoning models send it."""
    parts = [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}, {"type": "text", "text": "Look."}, 7]
    call = {"id": "1", "type": "function", "function": {"name": "execute_bash", "arguments": '{"command": "ls"}'}}
    found = styles.read({"role": "assistant", "content": parts, "tool_calls": [call]}, "native")
    assert found == Action("Look.", "execute_bash", {"command": "ls"})
    assert all(styles.read({"content": odd}, style).malformed for odd in (7, {}, [None]) for style in STYLES)


def test_history_is_written_in_the_teachers_own_format():
    task = {"role": "user", "content": "Mend it."}
    bad = scaffold.action_message(Action("", "", raw="", error="no call"))
    good = scaffold.action_message(AWKWARD[0])
    chat = [{"role": "system", "content": "S"}, task, bad, scaffold.observation_message("ERROR: no call"), good]
    chat.append(scaffold.observation_message("a.py"))
    native = styles.render(chat, "native")
    assert [message["role"] for message in native] == ["system", "user", "assistant", "user", "assistant", "tool"]
    assert native[5]["tool_call_id"] == native[4]["tool_calls"][0]["id"]
    assert native[4]["tool_calls"][0]["function"]["arguments"] == '{"command": "ls"}'
    coder = styles.render(chat, "qwen3_coder")
    assert coder[4]["content"] == (
        "Look.\n<tool_call>\n<function=execute_bash>\n<parameter=command>\nls\n</parameter>\n</function>\n</tool_call>"
    )
    assert coder[5] == {"role": "user", "content": "<tool_response>\na.py\n</tool_response>"}
    assert coder[0]["content"].startswith("S\n\n# Tools") and '"insert_line"' in coder[0]["content"]
    assert {message["role"] for message in styles.render(chat, "text")} == {"system", "user", "assistant"}


def test_hermes_messages_are_what_the_students_own_template_says(renderer, train_tasks):
    """Ordinary messages and structured ones give the same text, but for the line end that Qwen's own template has
    before a call and the tiny one has not."""
    task, turns = train_tasks[0], []
    for number in range(3):
        turns.append(Turn(number, "student", AWKWARD[number], f"seen {number}", (), 0))
    chat = scaffold.messages_before(task, turns)[1:]
    plain = renderer.tokenizer.apply_chat_template(styles.render(chat, "hermes"), tokenize=False)
    structured = renderer.tokenizer.apply_chat_template(chat, tokenize=False)
    assert plain.replace("\n<tool_call>", "<tool_call>") == structured.replace("\n<tool_call>", "<tool_call>")


@pytest.mark.parametrize("style", STYLES)
def test_every_style_reaches_the_server_and_comes_back(server, file, style):
    number = next(FRESH)
    action = asked(server, file, said(number), settings=replace(PATIENT, style=style))
    assert action == Action("Well.", "execute_bash", {"command": f"echo {number}"})
    request = server.count()["requests"][-1]
    assert ("tools" in request) == (style == "native")
    assert "seed" not in request and "top_p" not in request and request["temperature"] == 0


# --- faults -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["429", "500", "502", "503", "reset", "short", "cut", "another", "ended", "provider"])
def test_a_passing_fault_is_tried_again(server, file, fault):
    number = next(FRESH)
    server.next(fault, fault, "ok")
    before = server.count()["tries"]
    assert asked(server, file, said(number)).arguments == {"command": f"echo {number}"}
    assert server.count()["tries"] == before + 3


def test_a_timeout_is_tried_again_and_keeps_its_bound_on_the_bill(server, file):
    number = next(FRESH)
    server.next("hold", "ok")
    asked(server, file, said(number), settings=replace(PATIENT, timeout_s=1.5))
    bill = bill_table(file, "run").loc["run"]
    assert (bill.queries, bill.uncertain_queries) == (1, 1)
    assert bill.uncertain_tokens > bill.prompt + bill.completion


def test_retry_after_is_honoured_and_one_beyond_patience_is_not_waited_for(server, file):
    async def timed(policy: EndpointPolicy) -> float:
        began = asyncio.get_running_loop().time()
        await policy.reply(state(next(FRESH)), GREEDY, 0)
        return asyncio.get_running_loop().time() - began

    server.next("429:0.7", "ok")
    assert asked(server, file, timed) >= 0.7
    server.next("429:9000", "ok")
    with pytest.raises(EnvironmentProblem, match="429:9000"):
        asked(server, file, timed)
    server.next()


def test_a_limit_on_calls_makes_a_run_slow_and_loses_nothing(server, file):
    """With a handful at once, of many that want an answer: each waits for its turn, however often it is refused."""

    async def use(policy: EndpointPolicy) -> list[Any]:
        return await asyncio.gather(*(policy.reply(state(next(FRESH)), GREEDY, 0) for _ in range(150)))

    server.next()
    server.limit(50.0)
    before = server.count()["faults"].get("429", 0)
    try:
        found = asked(server, file, use, concurrency=8, retries=replace(QUICK, tries=4))
    finally:
        server.limit(0)
    assert len(found) == len(calls_table(file, "run")) == 150
    assert server.count()["faults"]["429"] - before > 150


@pytest.mark.parametrize(
    ("fault", "words"), [("429:9000", "not before 9,000 s have passed"), ("429", "Run the same command again")]
)
def test_a_quota_that_is_used_up_stops_the_run_before_labels_are_lost(server, file, fault, words):
    """Hosts that say when the day is over are believed; those that do not, when they have answered nobody for long."""

    async def use(policy: EndpointPolicy) -> list[BaseException]:
        await policy.reply(state(next(FRESH)), GREEDY, 0)
        server.next(*[fault] * 10_000)
        jobs = (policy.reply(state(next(FRESH)), GREEDY, 0) for _ in range(2 * OUTAGE))
        return await asyncio.gather(*jobs, return_exceptions=True)

    server.next()
    found = asked(server, file, use, retries=replace(QUICK, outage_s=0.05))
    assert {type(error) for error in found} == {EnvironmentProblem} and words in str(found[0])
    server.next()


def test_a_server_that_limits_calls_from_the_first_on_is_told_from_a_failure(server, file):
    server.next(*["429"] * QUICK.tries)
    with pytest.raises(CallLimit):
        asked(server, file, said(next(FRESH)))


def test_a_request_that_no_limit_admits_is_not_waited_for(server, file):
    server.next("429: Request too large for teacher on tokens per min", "ok")
    with pytest.raises(PolicyError, match="Request too large"):
        asked(server, file, said(next(FRESH)))
    server.next()


def test_what_a_model_thinks_beside_its_answer_is_on_the_bill(server, file):
    server.next("thinks")
    number = next(FRESH)
    asked(server, file, said(number))
    assert bill_table(file, "run").loc["run"].completion == usage_of(number)["completion"] + THOUGHT


def test_waits_grow_with_jitter_from_their_own_source(server, file):
    class Tried:
        def __init__(self, number: int) -> None:
            self.attempt_number, self.outcome = number, self

        def exception(self) -> Any:
            return type("E", (), {"after_s": 0.0})

    async def waits(policy: EndpointPolicy) -> list[float]:
        return [policy._wait(Tried(number)) for number in range(1, 9)]

    first, again = (asked(server, file, waits, retries=Retries()) for _ in range(2))
    assert first == again
    for number, wait in enumerate(first):
        assert 0.5 * min(60, 2**number) <= wait <= min(60, 2**number)


def test_what_fails_in_the_end_is_a_policy_error_and_costs_nothing_where_the_server_refused(server, file):
    server.next(*["500"] * 6)
    with pytest.raises(PolicyError, match=f"{MODEL} at http.*500"):
        asked(server, file, said(next(FRESH)))
    assert len(calls_table(file, "run")) == 0


@pytest.mark.parametrize(("fault", "kind"), [("400", PolicyError), ("402", EnvironmentProblem)])
def test_a_refused_request_and_a_spent_account_are_not_tried_again(server, file, fault, kind):
    """Without credit every label would be refused: the first refusal ends the run."""
    before = server.count()["tries"]
    server.next(fault)
    with pytest.raises(EnvironmentProblem) as raised:
        asked(server, file, said(next(FRESH)))
    assert raised.type is kind and server.count()["tries"] == before + 1


def test_a_reply_without_a_count_is_used_and_keeps_its_bound(server, file):
    number = next(FRESH)
    server.next("uncounted")
    assert asked(server, file, said(number)).arguments == {"command": f"echo {number}"}
    assert calls_table(file, "run").state.tolist() == ["uncertain"]
    assert asked(server, file, said(number)).arguments == {"command": f"echo {number}"}
    assert len(calls_table(file, "run")) == 1


def test_equal_requests_at_the_same_time_are_one_call(server, file):
    number = next(FRESH)

    async def together(policy: EndpointPolicy) -> list[Tokens]:
        replies = await asyncio.gather(*(policy.reply(state(number), GREEDY, 0) for _ in range(20)))
        return [usage for _, usage in replies]

    asked(server, file, together)
    assert server.count()["delivered"][str(number)] == 1


def test_a_seed_counts_where_chance_decides_and_only_there(server, file):
    number, hot = next(FRESH), Sampling(0.7, 0.9, 16)

    async def twice(policy: EndpointPolicy) -> None:
        for sampling in (GREEDY, hot):
            for seed in (1, 2, 2):
                await policy.reply(state(number), sampling, seed)

    asked(server, file, twice)
    assert server.count()["delivered"][str(number)] == 3
    request = server.count()["requests"][-1]
    assert (request["seed"], request["top_p"], request["max_tokens"]) == (2, 0.9, 16)


def test_an_endpoint_that_is_gone_stops_the_run(server, file):
    async def many(policy: EndpointPolicy) -> list[BaseException]:
        jobs = (policy.reply(state(number), GREEDY, 0) for number in range(OUTAGE + 3))
        return await asyncio.gather(*jobs, return_exceptions=True)

    gone = replace(PATIENT, endpoint="http://127.0.0.1:9/v1")
    kinds = [type(error) for error in asked(server, file, many, settings=gone, retries=replace(QUICK, tries=2))]
    assert Counter(kinds) == {PolicyError: OUTAGE - 1, EnvironmentProblem: 4}
    assert len(calls_table(file, "run")) == 0  # never reached: nothing can have been charged


def test_an_endpoint_that_was_admitted_is_waited_for_from_the_first_call_on(server, file):
    gone = replace(PATIENT, endpoint="http://127.0.0.1:9/v1")
    brief = replace(QUICK, tries=2, outage_s=0.02)
    with pytest.raises(PolicyError):
        asked(server, file, said(0), settings=gone, retries=brief)
    with pytest.raises(EnvironmentProblem, match="Run the same command again"):
        asked(server, file, said(0), settings=gone, retries=brief, answered=True)


def test_an_endpoint_that_refuses_everything_stops_the_run_too(server, file):
    """A parameter that it does not take, say; a day of episodes would each lose its labels, one by one."""

    async def many(policy: EndpointPolicy) -> list[BaseException]:
        jobs = (policy.reply(state(next(FRESH)), GREEDY, 0) for _ in range(OUTAGE + 1))
        return await asyncio.gather(*jobs, return_exceptions=True)

    server.next(*["400"] * (OUTAGE + 3))  # the small question is refused too
    kinds = Counter(type(error) for error in asked(server, file, many))
    assert kinds == {PolicyError: OUTAGE - 1, EnvironmentProblem: 2}


def test_an_endpoint_that_answered_before_is_waited_for(server, file):
    """A restart of a teacher's server at night costs minutes, no labels and no episodes."""

    async def use(policy: EndpointPolicy) -> list[int]:
        await policy.reply(state(next(FRESH)), GREEDY, 0)
        server.next(*["500"] * 60)
        jobs = (policy.reply(state(next(FRESH)), GREEDY, 0) for _ in range(8))
        return await asyncio.gather(*jobs)

    server.next("ok")
    assert len(asked(server, file, use)) == 8
    server.next("ok")
    with pytest.raises(EnvironmentProblem, match="Run the same command again"):
        asked(server, file, use, retries=replace(QUICK, outage_s=0.02))
    server.next("ok", *["ok"] * 40)


def test_an_outage_that_begins_between_a_call_and_its_answer_is_waited_for_by_all(server, file):
    """Calls that were open when the last answer came are no worse than those that began later."""

    async def use(policy: EndpointPolicy) -> list[int]:
        server.next(*["ok"] * 10, *["500"] * 80)
        return await asyncio.gather(*(policy.reply(state(next(FRESH)), GREEDY, 0) for _ in range(30)))

    assert len(asked(server, file, use, concurrency=4)) == 30


def test_requests_that_are_refused_one_by_one_stop_no_run_whose_endpoint_answers(server, file):
    """A content filter, say: each costs its own label, however many come in a row."""

    async def use(policy: EndpointPolicy) -> list[BaseException]:
        found = []
        for _ in range(OUTAGE + 2):
            server.next("400")
            (error,) = await asyncio.gather(policy.reply(state(next(FRESH)), GREEDY, 0), return_exceptions=True)
            found.append(error)
        return found

    assert {type(error) for error in asked(server, file, use)} == {PolicyError}


def test_replies_of_no_use_are_not_paid_for_without_end(server, file):
    async def use(policy: EndpointPolicy) -> None:
        await policy.reply(state(next(FRESH)), GREEDY, 0)
        server.next(*["another"] * 50)
        with pytest.raises(PolicyError):
            await policy.reply(state(next(FRESH)), GREEDY, 0)

    server.next("ok")
    asked(server, file, use)
    assert len(calls_table(file, "run")) == 1 + QUICK.tries
    server.next("ok", *["ok"] * 60)


def test_another_model_after_an_outage_is_no_silence_that_is_paid_for_without_end(server, file):
    """A gateway that falls back to another model answers, and not what was asked for."""

    async def use(policy: EndpointPolicy) -> list[BaseException]:
        await policy.reply(state(next(FRESH)), GREEDY, 0)
        server.next(*["500"] * QUICK.tries, *["another"] * 10_000)
        jobs = [policy.reply(state(next(FRESH)), GREEDY, 0) for _ in range(OUTAGE + 1)]
        return [(await asyncio.gather(job, return_exceptions=True))[0] for job in jobs]

    server.next("ok")
    kinds = [type(error) for error in asked(server, file, use, concurrency=1)]
    assert kinds == [PolicyError] * (OUTAGE - 1) + [EnvironmentProblem] * 2
    paid = len(calls_table(file, "run"))
    assert OUTAGE * QUICK.tries < paid <= 1 + (OUTAGE + 1) * (QUICK.tries + 1)
    server.next()


def test_a_server_that_has_ended_is_not_waited_for(server, file):
    def ended() -> None:
        raise EnvironmentProblem("the teacher's server has ended; see its log")

    async def use(policy: EndpointPolicy) -> None:
        await policy.reply(state(next(FRESH)), GREEDY, 0)
        server.next(*["500"] * 10_000)
        await policy.reply(state(next(FRESH)), GREEDY, 0)

    server.next("ok")
    with pytest.raises(EnvironmentProblem, match="has ended; see its log"):
        asked(server, file, use, check=ended)
    server.next()


def test_one_request_that_fails_beside_others_that_are_answered_is_given_up(server, file, monkeypatch):
    bad, plain = next(FRESH), EndpointPolicy._try

    async def breaking(policy: EndpointPolicy, key: str, body: Mapping[str, Any]) -> Any:
        if body["messages"][-1]["content"] == f"state {bad}":
            raise Failure("the server stumbles over this one", again=True)
        return await plain(policy, key, body)

    async def use(policy: EndpointPolicy) -> BaseException | None:
        failing = asyncio.ensure_future(policy.reply(state(bad), GREEDY, 0))
        while not failing.done():
            await policy.reply(state(next(FRESH)), GREEDY, 0)
        return failing.exception()

    monkeypatch.setattr(EndpointPolicy, "_try", breaking)
    assert type(asked(server, file, use)) is PolicyError


TOO_LONG = (
    "maximum context length is 4096 tokens",
    "context_length_exceeded",
    "prompt is too long: 9 > 8",
    "exceeds the available context size",
    "`inputs` tokens + `max_new_tokens` must be <= 9",
)


@pytest.mark.parametrize("words", TOO_LONG)
def test_a_chat_too_long_for_the_model_is_told_from_a_failure(server, file, words):
    server.next(f"400:{words}")
    with pytest.raises(ContextError, match=re.escape(words)):
        asked(server, file, said(next(FRESH)))
    assert len(calls_table(file, "run")) == 0


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_server_of_this_machine_is_not_asked_by_way_of_a_proxy(server, file, monkeypatch, host):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    here = replace(PATIENT, endpoint=server.url.replace("127.0.0.1", host))
    assert not asked(server, file, said(next(FRESH)), settings=here).malformed


def test_another_machine_is_asked_by_way_of_the_proxy(server, file, monkeypatch):
    monkeypatch.setenv("http_proxy", server.url.removesuffix("/v1"))
    far = replace(PATIENT, endpoint="http://teacher.invalid/v1")
    assert not asked(server, file, said(next(FRESH)), settings=far).malformed


def test_a_cancelled_call_keeps_its_bound(server, file):
    server.next("hold")

    async def leave(policy: EndpointPolicy) -> None:
        job = asyncio.ensure_future(policy.reply(state(next(FRESH)), GREEDY, 0))
        while not file.rows("SELECT 1 FROM calls"):
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        job.cancel()

    asked(server, file, leave)
    assert calls_table(file, "run").state.tolist() == ["uncertain"]


def test_same_model():
    assert same_model("gpt-x", "gpt-x-2025-01-31") and same_model("a/b", "b") and same_model("c-latest", "c-20250101")
    assert not same_model("gpt-x", "gpt-x-mini") and not same_model("a", "b")


# --- the key ------------------------------------------------------------------------------------------------


def test_a_wrong_key_is_final_and_says_what_to_set(server, file, monkeypatch):
    monkeypatch.setenv(KEY_VARIABLE, "wrong-key-55aa55aa")
    for use in (said(next(FRESH)), check):
        with pytest.raises(EnvironmentProblem, match="set the environment variable") as raised:
            asked(server, file, use)
        assert "wrong-key-55aa55aa" not in str(raised.value)
    assert len(calls_table(file, "run")) == 0


def test_no_key_in_anything_that_is_written_said_or_shown(server, tmp_path, caplog, capfd, train_tasks):
    caplog.set_level(logging.DEBUG)
    texts = []

    async def use(policy: EndpointPolicy) -> None:
        texts.extend([repr(policy), str(vars(policy)), await check(policy)])
        server.next("500", "cut", "400")
        for number in (next(FRESH), next(FRESH)):
            try:
                await policy.reply(state(number), GREEDY, 0)
            except PolicyError as error:
                texts.append(repr(error))

    file = AnswerFile(tmp_path / "answers.sqlite")
    asked(server, file, use)
    texts += [caplog.text, *capfd.readouterr(), calls_table(file, "run").to_csv()]
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    file.close()
    assert len(written) > 4000 and caplog.text
    assert KEY not in "".join(texts) and KEY.encode() not in written


@pytest.mark.parametrize("value", ["two words", "clé-secrète"])
def test_a_key_that_cannot_be_one_is_refused_without_being_shown(server, file, monkeypatch, value):
    monkeypatch.setenv(KEY_VARIABLE, value)
    with pytest.raises(ConfigError, match=KEY_VARIABLE) as raised:
        asked(server, file, check)
    assert value not in str(raised.value)


# --- before hours are spent ---------------------------------------------------------------------------------


def test_a_fitting_endpoint_is_admitted_for_one_call(server, file):
    assert MODEL in asked(server, file, check)
    assert asked(server, file, check) and len(calls_table(file, "run")) == 1


@pytest.mark.parametrize(
    ("wrong", "how", "error", "words"),
    [
        ({"path": "teachr"}, {}, ConfigError, "teachr.*did you mean 'teacher'.*it has teacher"),
        ({}, {"student": "/checkpoints/teacher/"}, ConfigError, "is the student"),
        ({}, {"student": "Teacher"}, ConfigError, "is the student"),
        ({}, {"student": "Org/Snapshot"}, ConfigError, "is the student"),
        ({}, {"context": 5000}, ConfigError, "reads 4096 tokens.*episode.context"),
        ({"endpoint": "http://127.0.0.1:9/v1"}, {}, PolicyError, "is the server up"),
    ],
)
def test_an_endpoint_that_cannot_label_is_refused(server, file, wrong, how, error, words):
    with pytest.raises(error, match=words):
        asked(server, file, lambda policy: check(policy, **how), settings=replace(PATIENT, **wrong))
    assert len(calls_table(file, "run")) == 0


def test_a_model_that_calls_no_tools_is_refused_with_the_style_that_may_do(server, file):
    server.next("silent", "silent")
    with pytest.raises(ConfigError, match="set teacher.style = 'text'"):
        asked(server, file, check)
    server.next("silent", "silent")
    with pytest.raises(ConfigError, match="choose a model"):
        asked(server, file, check, settings=replace(PATIENT, style="text"))
    server.next("long")  # the answer that was kept is asked for anew
    with pytest.raises(ConfigError, match="cut off: raise episode.max_new_tokens"):
        asked(server, file, check)


def test_an_endpoint_is_asked_as_the_run_will_ask_it(server, file):
    hot = Sampling(0.7, 0.9, 64)
    assert MODEL in asked(server, file, lambda policy: check(policy, sampling=hot))
    request = server.count()["requests"][-1]
    assert (request["temperature"], request["top_p"], request["seed"]) == (0.7, 0.9, 2**31 - 1)
    assert len(calls_table(file, "run")) == 1  # and never greedily: some models take one temperature alone
    server.next("400:seed is no 32-bit integer")
    with pytest.raises(PolicyError, match="seed is no 32-bit integer"):
        asked(server, file, lambda policy: check(policy, sampling=replace(hot, top_p=0.8)), run="other")


def test_an_endpoint_that_refuses_a_past_with_calls_is_refused_before_the_run(server, file):
    """Its first turns would be answered and every later one refused."""
    server.next("past")
    with pytest.raises(PolicyError, match="reasoning_content.*set teacher.style = 'text'"):
        asked(server, file, check)
    server.next("past")
    assert MODEL in asked(server, file, check, settings=replace(PATIENT, style="text"))


def test_a_model_that_stumbles_once_or_was_given_a_parser_since_is_admitted(server, file):
    """What it said before is kept, and is not held against it."""
    server.next("silent", "ok")
    assert MODEL in asked(server, file, check)
    server.next("ok")
    assert MODEL in asked(server, file, check) and len(calls_table(file, "run")) == 3


# --- as the student -----------------------------------------------------------------------------------------


def test_an_endpoint_can_be_the_student_too(file, renderer, sandboxes, train_tasks):
    """What it says is executed, and written again in the student's tokens; here an oracle solves what it is given."""
    few = train_tasks[:2]
    conditions = episode.Conditions(STUDENT_ALONE, GREEDY, 0, "endpoint", episode.Limits(context=100_000))
    with running({"train": len(few)}) as oracle:

        @asynccontextmanager
        async def cast(version: Version) -> AsyncIterator[Cast]:
            async with EndpointPolicy(
                replace(PATIENT, endpoint=oracle.url), Bill(file, Account("run", 0)), jitter=random.Random(0)
            ) as student:
                yield Cast(student, OraclePolicy(), unlabelled, GREEDY)

        found = collected(Collector(cast, sandboxes, renderer, log=silent), jobs(few, conditions))
    for number, task in enumerate(few):
        (path,) = found[number].trajectories
        assert path.stop is StopReason.FINISH and grade(task, path.patch, sandboxes).resolved
        assert {turn.actor for turn in path.turns} == {"student"}
        assert all(renderer.parse(turn.token_ids) == turn.action for turn in path.turns)


async def unlabelled(task: Task, trajectory: Trajectory) -> Labelled:
    return Labelled((), ())


# --- labels -------------------------------------------------------------------------------------------------


def visited(task: Task, length: int = 6) -> tuple[Task, Trajectory]:
    """A task and an episode in it, student and teacher in turn; turn t was taken in `state N + t` of fresh ones."""
    numbers = [next(FRESH) for _ in range(length)]
    turns = [
        Turn(t, ("student", "teacher")[t % 2], AWKWARD[0], f"state {number + 1}", (1, 2), 1, 0.5, 0.25)
        for t, number in enumerate(numbers)
    ]
    stated = replace(task, problem_statement=f"state {numbers[0]}")
    return stated, Trajectory(task.instance_id, 0, 2, "base", tuple(turns), StopReason.TURNS, "", 5)


def labelled(
    policy: Any, task: Task, found: Trajectory, renderer: Any, settings: LabelSettings = EVERY, longest: int = 160
):
    sampling = Sampling(max_new_tokens=longest)
    return label_episode(
        task, found, policy=policy, renderer=renderer, sampling=sampling, settings=settings, run_seed=3
    )


def test_the_oracle_behind_the_protocol_gives_the_same_labels_byte_for_byte(renderer, train_tasks):
    for task, found in map(visited, train_tasks):
        plain = label_trajectory(task, found, teacher=teacher.label, name=teacher.NAME, renderer=renderer)
        asked_for = asyncio.run(labelled(OraclePolicy(), task, found, renderer))
        assert [to_json(label) for label in asked_for.labels] == [to_json(label) for label in plain]
        assert asked_for.missing == ()


@pytest.mark.parametrize(
    ("states", "k", "chosen"),
    [
        ("every", 3, (0, 1, 2, 3, 4, 5)),
        ("kth", 3, (0, 3)),
        ("student", 1, (0, 2, 4)),
        ("first", 2, (0, 1)),
        ("first", 99, (0, 1, 2, 3, 4, 5)),
    ],
)
def test_the_states_that_are_labelled(train_tasks, states, k, chosen):
    assert states_to_label(visited(train_tasks[0])[1].turns, states, k) == chosen


@pytest.mark.parametrize("states", ["every", "student"])
def test_a_demonstration_keeps_its_labels_whoevers_turns_are_labelled(train_tasks, states):
    """Else SFT, and DAgger's first round, would have nothing to train on."""
    turns = [replace(turn, actor="teacher") for turn in visited(train_tasks[0])[1].turns]
    assert states_to_label(turns, states, 1) == (0, 1, 2, 3, 4, 5) and states_to_label((), states, 1) == ()
    assert states_to_label([*turns[:5], replace(turns[5], actor="slip")], "student", 1) == (5,)


def test_the_seed_of_a_label_is_that_of_the_turn_itself(train_tasks):
    task, found = visited(train_tasks[0])
    conditions = episode.Conditions(BernoulliMixer(Schedule("constant", start=0.5)), GREEDY, 3, "base")
    for turn in found.turns:
        going = episode.Episode(episode.Plan(task, round=2), conditions, 5, 5, turns=list(found.turns[: turn.index]))
        assert sampling_seed(3, *found.key, turn.index) == episode.answer_seed(going)


@pytest.mark.parametrize("style", STYLES)
def test_labels_through_an_endpoint_have_full_lineage_and_are_in_the_students_words(
    server, file, renderer, train_tasks, style
):
    task, found = visited(train_tasks[0])
    settings = replace(PATIENT, style=style)
    got = asked(server, file, lambda policy: labelled(policy, task, found, renderer), settings=settings)
    assert [label.turn for label in got.labels] == list(range(6)) and not got.missing
    for label, turn in zip(got.labels, found.turns, strict=True):
        assert (label.actor, label.beta, label.round, label.policy) == (turn.actor, 0.5, 2, "base")
        assert (label.teacher, label.template, label.lesson) == (MODEL, renderer.template_hash, True)
        assert renderer.parse(label.token_ids) == label.action


@dataclass(frozen=True)
class Says:
    """A teacher that gives one answer in every state."""

    action: Action
    name: str = "says"

    async def answer(self, task: Task, turns: Sequence[Turn], sampling: Sampling, seed: int) -> Answer:
        return Answer(self.action)


@pytest.mark.parametrize(
    ("thought", "command", "said"),
    [
        ("Look.", "grep '</tool_call>' parser.py", False),
        ("A turn ends with <|im_end|>.", "ls", False),
        ("It writes <tool_call> too often.", "ls", False),
        ("Look.", "echo '<parameter=path>' '</function>'", True),
    ],
)
def test_what_the_student_cannot_say_is_no_label(renderer, train_tasks, thought, command, said):
    """Trained on it, the student would learn to end a turn too early, or a call that is read as another one."""
    task, found = visited(train_tasks[0], 2)
    action = Action(thought, "execute_bash", {"command": command})
    got = asyncio.run(labelled(Says(action), task, found, renderer))
    assert (len(got.labels), len(got.missing)) == ((2, 0) if said else (0, 2))
    assert {(state.reason, state.detail) for state in got.missing} <= {
        ("malformed", "the student's format cannot say it in 160 tokens")
    }


def test_a_label_longer_than_a_turn_of_the_student_may_be_is_missing(renderer, train_tasks):
    """Served, it would be cut off: a teacher's own format may take fewer tokens for the same call."""
    task, found = visited(train_tasks[0], 1)
    action = Action("Look.", "execute_bash", {"command": "cat " + "a/very/long/path/" * 4})
    size = len(renderer.action_ids(action))
    for longest, labels in ((size, 1), (size - 1, 0)):
        assert len(asyncio.run(labelled(Says(action), task, found, renderer, longest=longest)).labels) == labels


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("stray", ["<tool_call>", "</tool_call>", "<tool_call>\n<tool_call>"])
def test_a_stray_tag_of_a_call_ends_the_thought(style, stray):
    """As Qwen3-Coder sometimes opens a call twice; hermes reads such a reply as malformed, which is asked for again."""
    message = written(Action("Look.", "execute_bash", {"command": "ls"}), style)
    message = message | {"content": message["content"].replace("Look.", f"Look.\n{stray}\n")}
    action = styles.read(message, style)
    twice = style == "hermes" and stray != "</tool_call>"
    assert action.malformed if twice else action == Action("Look.", "execute_bash", {"command": "ls"})


@pytest.mark.parametrize("fault", ["empty", "unknown", "silent", "two"])
def test_a_malformed_answer_is_asked_for_once_more_and_then_missing(server, file, renderer, train_tasks, fault):
    def one(*faults: str):
        server.next(*faults)
        task, found = visited(train_tasks[0], 1)
        use = lambda policy: labelled(policy, task, found, renderer)  # noqa: E731
        return asked(server, file, use), use

    mended, _ = one(fault, "ok")
    assert len(mended.labels) == 1 and not mended.missing
    assert server.count()["requests"][-1]["temperature"] == 0.7
    failed, use = one(fault, fault)
    (missing,) = failed.missing
    assert (missing.reason, missing.turn, missing.teacher) == ("malformed", 0, MODEL) and not failed.labels
    before = server.count()["tries"]
    assert asked(server, file, use) == failed and server.count()["tries"] == before  # paid for, and kept


def test_an_unanswered_state_is_missing_and_its_neighbours_are_not(server, file, renderer, train_tasks):
    task, found = visited(train_tasks[0])
    use = lambda policy: labelled(policy, task, found, renderer)  # noqa: E731
    server.next("ok", "400")
    got = asked(server, file, use, concurrency=1)
    assert [missing.reason for missing in got.missing] == ["no answer"] and len(got.labels) == 5
    again = asked(server, file, use)
    assert len(again.labels) == 6 and not again.missing  # nothing was kept of what never came


def test_beyond_the_budget_states_are_missing_in_the_order_of_turns(server, file, renderer, train_tasks):
    task, found = visited(train_tasks[0])
    use = lambda policy: labelled(policy, task, found, renderer)  # noqa: E731
    got = asked(server, file, use, tariff=Tariff(run=Cap(queries=4)))
    assert [label.turn for label in got.labels] == [0, 1, 2, 3]
    assert [(missing.turn, missing.reason) for missing in got.missing] == [(4, "budget"), (5, "budget")]
    assert "limit of 4 queries" in got.missing[0].detail


# --- ten thousand -------------------------------------------------------------------------------------------

EPISODES, TURNS = 940, 10  # which is more than ten thousand calls
SHARES = {  # of a thousand requests
    "429:0.01": 20, "500": 20, "503": 10, "502": 5, "reset": 10, "short": 5, "cut": 10, "another": 10, "empty": 10,
    "unknown": 10,
}  # fmt: skip
HOLDS = 12  # requests that are never answered: the first ones, of the impatient client
LIMIT = 2.0  # of money


class Words:
    """A student whose tokens are bytes, so that ten thousand labels are rendered in no time."""

    template_hash = "bytes"

    def action_ids(self, action: Action) -> tuple[int, ...]:
        return tuple(action.arguments["command"].encode())

    def means(self, token_ids: Sequence[int], action: Action) -> bool:
        return bytes(token_ids).decode() == action.arguments["command"]


def money(counted: dict[str, int]) -> float:
    """The server's own reckoning."""
    fresh = counted["prompt"] - counted["cached"]
    return (
        fresh * PRICES["prompt"] + counted["cached"] * PRICES["cached"] + counted["completion"] * PRICES["completion"]
    ) / 1e6


@pytest.mark.slow
def test_ten_thousand_labels_through_faults_none_lost_or_doubled_and_the_budget_holds(tmp_path, train_tasks):
    """A few episodes with an impatient client, a run whose money ends half-way, one without a limit that goes on from
    there, and one that asks nothing."""
    file = AnswerFile(tmp_path / "answers.sqlite")
    visits = [visited(train_tasks[0], TURNS) for _ in range(EPISODES)]

    async def label_all(policy: EndpointPolicy, chosen: list[tuple[Task, Trajectory]]) -> list[Labelled]:
        at_once = asyncio.Semaphore(16)

        async def one(task: Task, found: Trajectory) -> Labelled:
            async with at_once:
                return await labelled(policy, task, found, Words())

        return await asyncio.gather(*(one(*visit) for visit in chosen))

    def run(name: str, cap: Cap = FREE.run, timeout_s: float = 120.0, episodes: int = EPISODES) -> list[Labelled]:
        return asked(
            server,
            file,
            lambda policy: label_all(policy, visits[:episodes]),
            settings=replace(PATIENT, timeout_s=timeout_s),
            run=name,
            tariff=Tariff(Prices(**PRICES), run=cap),
            concurrency=32,
        )

    with running() as server:
        server.mixed(SHARES)
        server.next(*["hold"] * HOLDS)
        run("impatient", timeout_s=1.5, episodes=5)
        before = server.count()
        short = run("short of money", Cap(money=LIMIT))
        half = server.count()
        full = run("goes on")
        count = server.count()
        assert run("asks nothing") == full
        assert server.count()["tries"] == count["tries"] > 10_000

    # the budget holds, also against what the server charged and never told
    held = bill_table(file, "short of money").loc["run"]
    charged = [money(told["billed"]) + money(told["torn"]) for told in (before, half)]
    assert charged[1] - charged[0] <= held.money + held.uncertain_money <= LIMIT
    # every state has one outcome, every label is the right one, and a label once bought stays
    for first, last, (task, found) in zip(short, full, visits, strict=True):
        number = int(task.problem_statement.split()[1])
        for some in (first, last):
            assert sorted(r.turn for r in (*some.labels, *some.missing)) == [turn.index for turn in found.turns]
            assert all(label.action.arguments["command"] == f"echo {number + label.turn}" for label in some.labels)
        assert all(label in last.labels for label in first.labels)
    refused, left = (Counter(m.reason for some in outcome for m in some.missing) for outcome in (short, full))
    assert 1000 < refused["budget"] < 9000 and set(left) <= {"malformed"}
    assert sum(count["faults"].values()) - count["faults"]["ok"] > 900  # and it did go wrong
    # the server's own count: one good answer for each label, and the same tokens and money to the last digit
    bills = [bill_table(file, name).loc["run"] for name in ("impatient", "short of money", "goes on")]
    labels, answers = sum(len(some.labels) for some in full), sum(count["delivered"].values())
    uncertain = sum(bill.uncertain_queries for bill in bills)
    late = uncertain - count["torn"]["queries"] - count["faults"]["502"]  # on a machine too busy for the impatient
    assert len(count["delivered"]) == labels and labels <= answers <= labels + late
    assert 0 <= count["billed"]["queries"] - sum(bill.queries for bill in bills) <= late
    if not late:
        for name in ("prompt", "cached", "completion"):
            assert sum(bill[name] for bill in bills) == count["billed"][name]
        assert sum(bill.money for bill in bills) == pytest.approx(money(count["billed"]), rel=1e-12)
    file.close()
