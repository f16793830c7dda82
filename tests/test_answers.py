"""The file of answers and the bill: kept whole, shared safely, and never above a limit."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dagger_nb.answers import AnswerFile
from dagger_nb.bill import PICOS, Account, Bill, Cap, Prices, Tariff, Tokens, bill_table, calls_table, tariff
from dagger_nb.errors import BudgetError, DataError, EnvironmentProblem
from dagger_nb.settings import LabelSettings

REPLY = {"message": {"content": "x"}, "finish_reason": "stop", "model": "m", "usage": None}
BOUND = Tokens(prompt=100, completion=10)
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def file(tmp_path):
    found = AnswerFile(tmp_path / "answers.sqlite")
    yield found
    found.close()


def reserve(bill: Bill, key: str = "k", bound: Tokens = BOUND, within_s: float = 60.0) -> int:
    return asyncio.run(bill.reserve(key, "m", bound, within_s=within_s))


def totals(file: AnswerFile) -> list[tuple[int, ...]]:
    return file.rows("SELECT SUM(queries), SUM(tokens), SUM(picos) FROM totals")


def added_up(file: AnswerFile) -> list[tuple[int, ...]]:
    return file.rows("SELECT COUNT(*), COALESCE(SUM(prompt + completion), 0), COALESCE(SUM(picos), 0) FROM calls")


# --- answers ------------------------------------------------------------------------------------------------


def test_an_answer_is_found_by_its_key_also_by_the_next_process(file):
    bill = Bill(file, Account("r", 1))
    assert file.find("k") is None
    bill.settle(reserve(bill), Tokens(1, 2), REPLY)
    assert file.find("k") == REPLY
    assert AnswerFile(file.path).find("k") == REPLY


def test_the_first_answer_under_a_key_stays(file):
    bill = Bill(file, Account("r", 1))
    for text in ("first", "second"):
        bill.settle(reserve(bill), Tokens(1, 2), {"message": text})
    assert file.find("k") == {"message": "first"}
    assert len(calls_table(file, "r")) == 2  # both were paid for


def test_answer_and_bill_are_written_together_or_not_at_all(file):
    bill = Bill(file, Account("r", 1))
    call = reserve(bill)
    with pytest.raises(TypeError):
        bill.settle(call, Tokens(1, 2), {"message": object()})
    assert calls_table(file, "r").state.tolist() == ["open"] and totals(file) == [(1, 110, 0)]


def test_what_is_no_file_of_answers_is_refused(tmp_path):
    path = tmp_path / "answers.sqlite"
    path.write_text("hello, this is a text and no database at all, as one may see" * 20)
    with pytest.raises(DataError, match="move it aside"):
        AnswerFile(path)
    other = tmp_path / "newer.sqlite"
    connection = sqlite3.connect(other)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(DataError, match="format 99"):
        AnswerFile(other)
    (tmp_path / "folder.sqlite").mkdir()
    with pytest.raises(EnvironmentProblem, match="folder.sqlite"):
        AnswerFile(tmp_path / "folder.sqlite")


def test_a_forked_child_opens_its_own_connection(file):
    bill = Bill(file, Account("r", 1))
    bill.settle(reserve(bill), Tokens(1, 2), REPLY)
    child = os.fork()
    if child == 0:
        os._exit(0 if file.find("k") == REPLY and reserve(Bill(file, Account("r", 2)), "c") else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert calls_table(file, "r").state.tolist() == ["settled", "open"]


# --- prices -------------------------------------------------------------------------------------------------


def test_what_a_call_costs():
    prices = Prices(prompt=3.0, cached=0.3, completion=15.0)
    assert prices.picos(Tokens(prompt=1_000_000, cached=400_000, completion=0)) / PICOS == 1.92
    assert prices.picos(Tokens(completion=2)) == 30 * 10**6
    unsaid = Prices(prompt=3.0)  # of cached tokens: then they are no gift
    assert unsaid.picos(Tokens(prompt=10, cached=10)) == unsaid.picos(Tokens(prompt=10))


def test_the_settings_reach_the_tariff():
    limits = LabelSettings(
        queries=1, tokens=2, money=3.0, round_queries=4, round_tokens=5, round_money=6.0, price_prompt=7.0,
        price_cached=8.0, price_completion=9.0,
    )  # fmt: skip
    assert tariff(limits) == Tariff(Prices(7.0, 8.0, 9.0), Cap(1, 2, 3.0), Cap(4, 5, 6.0))


# --- limits -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cap", "words"),
    [(Cap(queries=2), "2 queries"), (Cap(tokens=329), "329 tokens"), (Cap(money=0.000_329), "0.000329 of money")],
)
def test_the_call_that_would_overrun_a_limit_is_not_made(file, cap, words):
    bill = Bill(file, Account("r", 1), Tariff(Prices(1.0, 1.0, 1.0), run=cap))
    for _ in range(2):
        bill.doubt(reserve(bill))
    with pytest.raises(BudgetError, match=f"limit of {words} for the run of r; nothing was asked"):
        reserve(bill)
    assert added_up(file) == totals(file) and totals(file)[0][0] == 2


def test_a_limit_that_is_met_exactly_is_not_overrun(file):
    bill = Bill(file, Account("r", 1), Tariff(Prices(1.0, 1.0, 1.0), Cap(3, 330, 0.000_33)))
    for _ in range(3):
        bill.doubt(reserve(bill))
    assert added_up(file) == totals(file) and totals(file)[0][0] == 3


def test_rounds_have_limits_of_their_own_and_runs_do_not_pay_for_each_other(file):
    limits = Tariff(run=Cap(queries=3), round=Cap(queries=2))

    def calls(run: str, round_: int) -> int:
        bill, made = Bill(file, Account(run, round_), limits), 0
        with contextlib.suppress(BudgetError):
            while made < 9:
                bill.settle(reserve(bill), Tokens(1, 1), None)
                made += 1
        return made

    assert [calls("a", 1), calls("a", 2), calls("a", 3), calls("b", 3)] == [2, 1, 0, 2]


def test_settling_and_refusals_make_room(file):
    bill = Bill(file, Account("r", 1), Tariff(run=Cap(tokens=220)))
    bill.settle(reserve(bill), Tokens(5, 5), REPLY)
    bill.release(reserve(bill))
    bill.doubt(reserve(bill))
    assert totals(file) == added_up(file) == [(2, 120, 0)]
    with pytest.raises(BudgetError):
        reserve(bill)


def test_a_call_waits_for_open_ones_to_make_room_and_in_order(file):
    bill = Bill(file, Account("r", 1), Tariff(run=Cap(tokens=230)))
    order = []

    async def one(name: str, bound: Tokens) -> None:
        call = await bill.reserve(name, "m", bound, within_s=60)
        order.append(name)
        await asyncio.sleep(0.02)
        bill.settle(call, Tokens(10, 1), None)

    async def main() -> None:
        small = Tokens(10, 1)
        await asyncio.gather(one("a", BOUND), one("b", BOUND), one("c", BOUND), one("d", small), one("e", small))

    asyncio.run(main())
    assert order == list("abcde")


def test_a_killed_processes_call_keeps_its_bound_and_holds_nobody_up_for_ever(file):
    bill = Bill(file, Account("r", 1), Tariff(run=Cap(tokens=115)))
    reserve(bill, within_s=-60.0)  # its time is over, and nobody closed it
    began = time.monotonic()
    with pytest.raises(BudgetError):
        reserve(bill)
    assert time.monotonic() - began < 10
    assert calls_table(file, "r").state.tolist() == ["uncertain"]


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.sampled_from(["settle", "doubt", "release", "keep"]), st.integers(0, 200)), max_size=25))
def test_whatever_happens_totals_are_the_sum_of_the_calls_and_below_the_limit(tmp_path_factory, steps):
    file = AnswerFile(tmp_path_factory.mktemp("bill") / "answers.sqlite")
    bill = Bill(file, Account("r", 1), Tariff(Prices(0.15, 0.075, 0.6), run=Cap(tokens=1500, money=0.000_5)))
    for what, size in steps:
        try:
            call = reserve(bill, bound=Tokens(size, completion=50), within_s=-60.0)
        except BudgetError:
            continue
        if what == "settle":
            bill.settle(call, Tokens(size // 2, size % 50, size // 4), None)
        elif what != "keep":
            getattr(bill, what)(call)
    assert totals(file)[0] in (added_up(file)[0], (None, None, None))
    assert added_up(file)[0][1] <= 1500 and added_up(file)[0][2] <= 0.000_5 * PICOS
    file.close()


# --- many at once -------------------------------------------------------------------------------------------

_BUYER = """
import asyncio, sys
from pathlib import Path
from dagger_nb.answers import AnswerFile
from dagger_nb.bill import *
from dagger_nb.errors import BudgetError
from dagger_nb.bill import Tokens

file, name = AnswerFile(Path(sys.argv[1])), sys.argv[2]
bill = Bill(file, Account("r", 1), Tariff(run=Cap(queries=int(sys.argv[3]))))
print("ready", flush=True)

async def main():
    for number in range(100000):
        key = f"{name}-{number}"
        try:
            call = await bill.reserve(key, "m", Tokens(100, 10), within_s=60)
        except BudgetError:
            return
        bill.settle(call, Tokens(7, 3), {"message": key})

asyncio.run(main())
"""


def buyer(file: AnswerFile, name: str, limit: int) -> subprocess.Popen:
    command = [sys.executable, "-c", _BUYER, str(file.path), name, str(limit)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)


def test_processes_share_one_budget_to_the_last_query(file):
    buyers = [buyer(file, name, 400) for name in "abc"]
    assert [process.wait(120) for process in buyers] == [0, 0, 0]
    assert added_up(file) == totals(file) == [(400, 4000, 0)]
    assert file.rows("SELECT COUNT(*) FROM answers") == [(400,)]


def test_a_kill_leaves_answers_and_bill_whole(file):
    """Killed at work three times; then everything that was settled is there, and at most one call a kill is open."""
    for name in "abc":
        process = buyer(file, name, 10**6)
        process.stdout.readline()
        time.sleep(0.2)
        process.send_signal(signal.SIGKILL)
        process.wait()
    states = calls_table(file, "r").state.value_counts()
    assert states.get("open", 0) <= 3
    assert file.rows("SELECT COUNT(*) FROM answers") == [(states["settled"],)]
    assert added_up(file) == totals(file)
    assert file.rows("PRAGMA integrity_check") == [("ok",)]


def test_threads_share_one_file(file):
    bill = Bill(file, Account("r", 1))

    def buy(name: int) -> None:
        for number in range(50):
            key = f"{name}-{number}"
            bill.settle(bill._reserve(key, "m", BOUND, 60.0), Tokens(1, 1), {"message": key})

    threads = [threading.Thread(target=buy, args=(name,)) for name in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert added_up(file) == totals(file) == [(300, 600, 0)]
    assert all(file.find(f"{name}-{number}") for name in range(6) for number in range(50))


# --- the report ---------------------------------------------------------------------------------------------


def test_the_bill_says_who_paid_for_what(file):
    prices = Tariff(Prices(2.0, 0.5, 8.0))
    for round_, usage in ((1, Tokens(1000, 10, 400)), (1, Tokens(500, 5, 0)), (2, Tokens(100, 1, 100))):
        bill = Bill(file, Account("r", round_), prices)
        bill.settle(reserve(bill), usage, None)
    bill.doubt(reserve(bill))
    calls = calls_table(file, "r")
    assert calls.money.tolist() == [0.00148, 0.00104, 0.000058, 0.00028]
    assert calls.state.tolist() == ["settled"] * 3 + ["uncertain"]
    assert bill.spent() == 0.002858 and Bill(file, Account("other", 1)).spent() == 0.0
    table = bill_table(file, "r")
    assert table.index.tolist() == [1, 2, "run"]
    assert table.loc["run"].tolist() == [3, 1600, 500, 16, 0.002578, 1, 110, 0.00028]
    assert table.loc[1, ["queries", "prompt", "cached", "completion"]].tolist() == [2, 1500, 400, 15]
    assert json.loads(table.to_json())["money"]["2"] == 0.000058


def test_the_bill_of_a_run_that_asked_nothing(file):
    assert len(calls_table(file, "r")) == 0
    assert bill_table(file, "r").loc["run"].tolist() == [0] * 8
