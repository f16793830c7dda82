"""Whether a teacher answers as a run needs it, and what its budget admits.

An endpoint is asked two or three small questions, every time anew, which are on no run's bill.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

from dagger_nb import crew
from dagger_nb.background import result_of
from dagger_nb.bill import Cap, tariff
from dagger_nb.doctor.checks import Check, failed
from dagger_nb.doctor.models import model
from dagger_nb.errors import CallLimit, ConfigError, DaggerError
from dagger_nb.planning import footprint
from dagger_nb.planning.plan import plan
from dagger_nb.planning.usage import Usage, account
from dagger_nb.recipes import RECIPES
from dagger_nb.settings import Settings


def teacher(settings: Settings) -> Check:
    """The teacher: the scripted one, a model that is served here, or an endpoint, which is asked."""
    chosen = settings.teacher
    if chosen.scripted:
        return Check("teacher", "ok", chosen.path)
    if not chosen.endpoint:
        return model("teacher", chosen.path, chosen.revision)
    key = f"${chosen.key_variable} is {'set' if os.environ.get(chosen.key_variable) else 'not set'}"
    try:
        answer = result_of(_ask(settings))
    except CallLimit as error:  # so the key is taken
        return Check(
            "teacher endpoint", "warn", f"{error} ({key})", "it is asked too often now; the run will wait for it"
        )
    except DaggerError as error:
        what, _, step = str(error).partition("; ")
        return Check(
            "teacher endpoint", "fail", f"{what} ({key})", step or "start the server, or correct teacher.endpoint"
        )
    return Check("teacher endpoint", "ok", f"{answer} ({key})")


def refused(settings: Settings) -> list[Check]:
    """Why a student that is not served cannot learn from a teacher that is a model; nothing where it can."""
    try:
        crew.refuse_teacher(settings)
    except ConfigError as error:
        return [failed("teacher", error)]
    return []


async def _ask(settings: Settings) -> str:
    from dagger_nb.answers import AnswerFile
    from dagger_nb.bill import Account, Bill
    from dagger_nb.policies.admission import check
    from dagger_nb.policies.endpoint import EndpointPolicy, Retries

    retries = Retries(tries=2, longest_s=5.0)
    with TemporaryDirectory() as folder, closing(AnswerFile(Path(folder) / "answers.sqlite")) as file:
        bill = Bill(file, Account("doctor", 0), tariff(settings.labels))
        async with EndpointPolicy(settings.teacher, bill, jitter=random.Random(0), retries=retries) as policy:
            return await check(policy, **crew.admission(settings))


def budget(settings: Settings) -> list[Check]:
    """Whether the limits of runs and rounds admit what the plan says that they take; nothing where there are none."""
    limits = tariff(settings.labels)
    if settings.teacher.scripted or (limits.run, limits.round) == (Cap(), Cap()):
        return []
    try:
        phases = plan(settings).phases
    except DaggerError as error:
        return [failed("budget", error)]
    runs = _exceeding(settings, limits.run, phases, lambda phase: account(phase)[0])
    rounds = _exceeding(settings, limits.round, phases, lambda phase: _round(*account(phase)))
    if not (runs or rounds):
        return [Check("budget", "ok", f"each of {len(RECIPES)} runs is planned to stay within its own limit")]
    over = " and ".join(
        f"the plan of {_listed(names)} exceeds {limit} of a {what}"
        for what, exceeding in (("run", runs), ("round", rounds))
        for limit, names in exceeding.items()
    )
    step = (
        "raise it, or ask less (labels.states, tasks.*). Labels beyond it are recorded as missing; a turn in which the "
        "teacher should act ends the run, which goes on where the limit is raised"
    )
    return [Check("budget", "warn", over, step)]


def _listed(names: Sequence[str], shown: int = 3) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


def _round(recipe_name: str, round_: int) -> str:
    return f"{recipe_name} round {round_}" if round_ else f"{recipe_name} exams"


def _exceeding(
    settings: Settings, cap: Cap, phases: Sequence[Usage], payer: Callable[[Usage], str]
) -> dict[str, list[str]]:
    """Which payers' phases take more than `cap`: their names, by the part of the limit (in words)."""
    found: dict[str, list[str]] = {}
    prices = tariff(settings.labels).prices
    for name in dict.fromkeys(map(payer, phases)):
        queries, tokens = footprint.teacher_tokens(settings, [phase for phase in phases if payer(phase) == name])
        limit = cap.why_not(round(queries), tokens.prompt + tokens.completion, prices.picos(tokens))
        if limit:
            found.setdefault(limit, []).append(name)
    return found
