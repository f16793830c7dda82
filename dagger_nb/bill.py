"""What asking costs, and hard limits on it.

Before a call its upper bound (all bytes of the request as prompt tokens, all tokens it may write) is reserved,
after it the bound is replaced by what the server counted. A call whose end is unknown (timeout, torn connection,
killed process) keeps its bound, because the server may have charged for it. So the sum of settled, uncertain and
open calls is never below what was charged and never above a limit, however many calls run at once and in how many
processes, as long as the server itself keeps to the length that it is given. Near the end of a budget calls wait for
open ones to settle; what remains unspent is less than one bound.

Money is counted in whole picos (1e-12 of the currency), so that sums are exact.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dagger_nb.answers import AnswerFile
from dagger_nb.errors import BudgetError
from dagger_nb.settings import LabelSettings

if TYPE_CHECKING:
    import pandas as pd

PICOS = 10**12  # of one unit of the currency
GRACE_S = 30.0  # for a busy machine to close a call whose time is over
POLL_S = 0.05  # between two looks whether open calls have settled, only where a budget is nearly spent


@dataclass(frozen=True, slots=True)
class Tokens:
    """What one answer was billed for, in tokens; `cached` is the part of `prompt` that the server had read before."""

    prompt: int = 0
    completion: int = 0
    cached: int = 0

    @classmethod
    def counted_in(cls, reply: Mapping[str, Any]) -> Tokens | None:
        """The tokens that the server counted in a reply, or None where it does not say.

        Some count what a model thinks in the total alone, and charge it as completion.
        """
        try:
            counted = reply["usage"]
            cached = (counted.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
            prompt, completion = int(counted["prompt_tokens"]), int(counted["completion_tokens"])
            return cls(prompt, max(completion, int(counted.get("total_tokens") or 0) - prompt), int(cached))
        except (KeyError, TypeError, ValueError, AttributeError):
            return None

    def __add__(self, other: Tokens) -> Tokens:
        return Tokens(self.prompt + other.prompt, self.completion + other.completion, self.cached + other.cached)


@dataclass(frozen=True, slots=True)
class Account:
    """Who pays: a run (the name of its folder) and one of its rounds."""

    run: str
    round: int


@dataclass(frozen=True, slots=True)
class Prices:
    """Money for a million tokens. A cached price of 0 means that cached tokens cost what others do."""

    prompt: float = 0.0
    cached: float = 0.0
    completion: float = 0.0

    def picos(self, usage: Tokens) -> int:
        """What a call costs.

        >>> Prices(0.5, 0.05, 2.0).picos(Tokens(prompt=1000, completion=10, cached=600)) / PICOS
        0.00025
        """
        prompt, cached, completion = (round(price * 10**6) for price in (self.prompt, self.cached, self.completion))
        fresh = usage.prompt - usage.cached
        return fresh * prompt + usage.cached * (cached or prompt) + usage.completion * completion


@dataclass(frozen=True, slots=True)
class Cap:
    """A hard limit; 0 is no limit. Tokens are prompt and completion together."""

    queries: int = 0
    tokens: int = 0
    money: float = 0.0

    def why_not(self, queries: int, tokens: int, picos: int) -> str:
        """Which part of the limit such totals would overrun, in words, or an empty text."""
        parts = (
            (queries, self.queries, f"{self.queries} queries"),
            (tokens, self.tokens, f"{self.tokens} tokens"),
            (picos, round(self.money * PICOS), f"{self.money:g} of money"),
        )
        return next((words for total, limit, words in parts if limit and total > limit), "")


@dataclass(frozen=True, slots=True)
class Tariff:
    """What tokens cost and what may be spent by a run and by each of its rounds."""

    prices: Prices = Prices()
    run: Cap = Cap()
    round: Cap = Cap()


def tariff(settings: LabelSettings) -> Tariff:
    """The prices and limits of the settings."""
    return Tariff(
        Prices(settings.price_prompt, settings.price_cached, settings.price_completion),
        Cap(settings.queries, settings.tokens, settings.money),
        Cap(settings.round_queries, settings.round_tokens, settings.round_money),
    )


class Bill:
    """The account of one round in the file of answers."""

    def __init__(self, file: AnswerFile, account: Account, tariff: Tariff = Tariff()) -> None:
        self.file, self.account, self.tariff = file, account, tariff
        self._queue = asyncio.Lock()  # calls that wait for budget get it in the order in which they asked

    async def reserve(self, key: str, model: str, bound: Tokens, *, within_s: float) -> int:
        """The number of a new open call of at most `bound`, once there is room for it.

        A call that is still open `within_s` seconds later, and `GRACE_S` more, belonged to a process that was killed.

        Raises:
            BudgetError: there is no room, and no open call that could make some.
        """
        async with self._queue:
            while (call := self._reserve(key, model, bound, within_s)) is None:
                await asyncio.sleep(POLL_S)
            return call

    def settle(self, call: int, usage: Tokens | None, reply: Mapping[str, Any] | None) -> None:
        """Close a call with what the server counted (None: it did not say), and keep the reply if it is an answer."""
        with self.file.writing() as connection:
            key, *bound = connection.execute(_BOUND, (call,)).fetchone()
            if usage is None:
                connection.execute("UPDATE calls SET state = 'uncertain' WHERE id = ?", (call,))
            else:
                picos = self.tariff.prices.picos(usage)
                connection.execute(_SETTLE, (usage.prompt, usage.cached, usage.completion, picos, call))
                self._count(connection, 0, usage.prompt + usage.completion - bound[0], picos - bound[1])
            if reply is not None:
                self.file.keep(key, reply)

    def release(self, call: int) -> None:
        """Forget a call that the server refused: nothing was charged."""
        with self.file.writing() as connection:
            _, tokens, picos = connection.execute(_BOUND, (call,)).fetchone()
            connection.execute("DELETE FROM calls WHERE id = ?", (call,))
            self._count(connection, -1, -tokens, -picos)

    def doubt(self, call: int) -> None:
        """Close a call whose end is unknown: its bound stays counted."""
        self.settle(call, None, None)

    def spent(self) -> float:
        """Money that counts against the run's limit by now: charged, or held for calls that are open or uncertain."""
        return self.file.rows(f"SELECT {_SUMS} FROM totals WHERE run = ?", self.account.run)[0][2] / PICOS

    def _reserve(self, key: str, model: str, bound: Tokens, within_s: float) -> int | None:
        """A new open call, or None where an open one may yet make room for it."""
        picos = self.tariff.prices.picos(bound)
        with self.file.writing() as connection:
            refusal = self._refusal(connection, bound.prompt + bound.completion, picos)
            if not refusal:
                self._count(connection, 1, bound.prompt + bound.completion, picos)
                until = time.time() + within_s + GRACE_S
                row = (*self._who, model, key, until, bound.prompt, bound.completion, picos)
                return connection.execute(_INSERT, row).lastrowid
            connection.execute(_OVERDUE, (time.time(),))
            if connection.execute(_ANY_OPEN, (self.account.run,)).fetchone():
                return None
        raise BudgetError(f"{refusal}; nothing was asked. Raise it, or choose fewer states (labels.states, labels.k)")

    def _refusal(self, connection: sqlite3.Connection, tokens: int, picos: int) -> str:
        for cap, what, where, values in (
            (self.tariff.run, "run", "run = ?", self._who[:1]),
            (self.tariff.round, f"round {self.account.round}", "run = ? AND round = ?", self._who),
        ):
            used = connection.execute(f"SELECT {_SUMS} FROM totals WHERE {where}", values).fetchone()
            limit = cap.why_not(used[0] + 1, used[1] + tokens, used[2] + picos)
            if limit:
                return f"one more call may exceed the limit of {limit} for the {what} of {self.account.run}"
        return ""

    @property
    def _who(self) -> tuple[str, int]:
        return self.account.run, self.account.round

    def _count(self, connection: sqlite3.Connection, queries: int, tokens: int, picos: int) -> None:
        connection.execute(_COUNT, (*self._who, queries, tokens, picos))


_SUMS = "COALESCE(SUM(queries), 0), COALESCE(SUM(tokens), 0), COALESCE(SUM(picos), 0)"
_INSERT = """INSERT INTO calls (run, round, model, key, state, until, prompt, cached, completion, picos)
VALUES (?, ?, ?, ?, 'open', ?, ?, 0, ?, ?)"""
_BOUND = "SELECT key, prompt + completion, picos FROM calls WHERE id = ?"
_SETTLE = "UPDATE calls SET state = 'settled', prompt = ?, cached = ?, completion = ?, picos = ? WHERE id = ?"
_OVERDUE = "UPDATE calls SET state = 'uncertain' WHERE state = 'open' AND until < ?"
_ANY_OPEN = "SELECT 1 FROM calls WHERE state = 'open' AND run = ?"
_COUNT = """INSERT INTO totals VALUES (?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET
queries = queries + excluded.queries, tokens = tokens + excluded.tokens, picos = picos + excluded.picos"""


# --- the report -------------------------------------------------------------------------------------------


def calls_table(file: AnswerFile, run: str) -> pd.DataFrame:
    """One row a call of a run, in the order of asking: round, model, state, tokens and money.

    `state` is "settled", or "uncertain" (and "open" while it runs), where tokens and money are upper bounds.
    """
    import pandas as pd

    columns = ["round", "model", "state", "prompt", "cached", "completion", "money"]
    rows = file.rows(
        "SELECT round, model, state, prompt, cached, completion, picos FROM calls WHERE run = ? ORDER BY id", run
    )
    return pd.DataFrame([(*row[:-1], row[-1] / PICOS) for row in rows], columns=columns)


def bill_table(file: AnswerFile, run: str) -> pd.DataFrame:
    """One row a round and a last row "run": settled queries, tokens and money, and upper bounds of uncertain ones."""
    import pandas as pd

    where = "WHERE run = ? GROUP BY round ORDER BY round"
    rounds = file.rows(f"SELECT round, {_SETTLED}, {_UNCERTAIN} FROM calls {where}", run)
    total = ("run", *(sum(column) for column in list(zip(*rounds, strict=True))[1:] or [()] * 8))
    rows = [(*row[:5], row[5] / PICOS, *row[6:8], row[8] / PICOS) for row in (*rounds, total)]
    return pd.DataFrame(rows, columns=["round", *_COLUMNS]).set_index("round")


_COLUMNS = ["queries", "prompt", "cached", "completion", "money"] + [
    f"uncertain_{name}" for name in ("queries", "tokens", "money")
]
_SETTLED = ", ".join(
    f"SUM(CASE WHEN state = 'settled' THEN {column} ELSE 0 END)"
    for column in ("1", "prompt", "cached", "completion", "picos")
)
_UNCERTAIN = ", ".join(
    f"SUM(CASE WHEN state = 'settled' THEN 0 ELSE {column} END)" for column in ("1", "prompt + completion", "picos")
)
