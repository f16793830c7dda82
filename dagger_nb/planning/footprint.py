"""What a served profile takes besides hours: GPU memory, disk, pulled images, the teacher's tokens and money.

queries      = turns x (1 - share of the student's turns x (1 - share of states that labels.states has labelled));
               malformed answers, which are asked for again, are not planned
prompt       = queries x live tokens, of which `cached` are found again; completion = queries x action tokens
money        = fresh prompt, cached prompt and completion, each x its price in `labels` (for a million tokens)
models       = weights as published, the student's twice where its 4-bit weights are unpacked to be served
runs         = tokens x record_bytes + an adapter (4 bytes a parameter, 3 of them with a checkpoint) a training
images       = at most sandbox.images_gb are kept; pulled at the least = distinct tasks, at the most (where they do not
               fit) one for every episode and patch, because each phase pulls again what others have pushed out
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from dagger_nb.bill import PICOS, Tokens, tariff
from dagger_nb.experiment import EXAMS, diagnosed
from dagger_nb.planning import scale
from dagger_nb.planning.usage import GRADE, TRAIN, Usage
from dagger_nb.recipes import RECIPES
from dagger_nb.settings import GENERATED, Settings
from dagger_nb.sizing import memory
from dagger_nb.sizing.memory import GB
from dagger_nb.sizing.shapes import shape_of

SWE_GYM_TRAINING = 2338  # distinct images of the training tasks


def memory_table(settings: Settings) -> pd.DataFrame:
    """GB on the GPU: a row a part, a column a phase, the last row the total."""
    columns = {phase.name: {part: size / GB for part, size in phase.parts.items()} for phase in memory.phases(settings)}
    table = pd.DataFrame(columns)
    table.loc["total"] = table.sum()
    return table


def fits(settings: Settings) -> list[str]:
    """For known GPUs, in words: that the profile fits and how many mean episodes the caches hold, or why not."""
    alike: dict[str, list[str]] = {}
    for name, gpu in scale.gpus().items():
        alike.setdefault(_fit(settings, gpu), []).append(name)
    return [f"{', '.join(names)}: {found}" for found, names in alike.items()]


def _fit(settings: Settings, gpu: scale.Gpu) -> str:
    if problems := memory.misfits(settings, gpu.bytes):
        return f"does not fit: {'; '.join(problems)}"
    what, advice = caches(settings, gpu.bytes)
    return f"fits; {what}{f': {advice}' if advice else ''}"


def caches(settings: Settings, gpu_bytes: float) -> tuple[str, str]:
    """How many mean episodes the caches of a GPU hold, and what to do where those are fewer than are played at once."""
    live, wanted = scale.episode(settings).live, settings.serving.concurrency
    held = int(memory.episodes_at_once(settings, gpu_bytes, live))
    found = f"its caches hold {held} episodes of mean length ({live:,.0f} tokens)"
    if 1 <= held < wanted:  # more at once push each other's histories out, which are then read again every turn
        return f"{found}, fewer than serving.concurrency = {wanted}", f"give -p serving.concurrency={held}"
    return f"{found}, serving.concurrency = {wanted}", ""


def labelled_share(settings: Settings) -> float:
    """Of all visited states, how many are labelled. Of student turns only: at most all."""
    labels, turns = settings.labels, scale.episode(settings).turns
    return {"every": 1.0, "student": 1.0, "kth": 1 / labels.k, "first": min(1.0, labels.k / turns)}[labels.states]


def teacher_tokens(settings: Settings, phases: Sequence[Usage]) -> tuple[float, Tokens]:
    """Queries of the teacher in all phases, and their tokens: one where it acts, and one for a label elsewhere."""
    queries = sum(phase.turns * _asked_share(settings, phase) for phase in phases)
    each = scale.episode(settings)
    prompt = queries * each.live
    return queries, Tokens(
        prompt=round(prompt), completion=round(queries * each.action), cached=round(prompt * scale.value("cached"))
    )


def _asked_share(settings: Settings, phase: Usage) -> float:
    """Of a phase's states, those in which the teacher acts or labels; none in exams that are not diagnosed."""
    exam = EXAMS.get(phase.phase.partition(" ")[2])
    if exam and not diagnosed(exam, settings):
        return 0.0
    student = scale.student_shares(settings).get(phase.kind.partition(" ")[0], 1.0)
    return 1 - student * (1 - labelled_share(settings))


def money(settings: Settings, tokens: Tokens) -> float:
    """What the tokens cost at the settings' prices; 0 where no price is set."""
    return tariff(settings.labels).prices.picos(tokens) / PICOS


def disk_gb(settings: Settings, phases: Sequence[Usage]) -> dict[str, float]:
    """GB by kind: models as published, the student's base unpacked, images kept, run folders."""
    student = shape_of(settings.student.path)
    models = student.published_bytes
    if memory.teacher_here(settings):
        models += shape_of(settings.teacher.path).published_bytes
    unpacked = student.published_bytes if settings.serving.weights == "dequantised" else 0
    trainings = sum(phase.kind.startswith(TRAIN) for phase in phases)
    tokens = sum(phase.prompt_tokens + phase.action_tokens + phase.observation_tokens for phase in phases)
    runs = tokens * scale.value("record_bytes") + trainings * 3 * 4 * student.adapter(settings.lora.rank)
    sizes = {"models": models / GB, "unpacked base": unpacked / GB}
    return sizes | {"images kept": images_gb(settings), "runs": runs / GB}


def images_gb(settings: Settings) -> float:
    """GB of pulled images that are kept at the most; tasks that bring their files pull none."""
    if settings.sandbox.back_end != "docker" or settings.tasks.source == GENERATED:
        return 0.0
    return settings.sandbox.images_gb


def pulls(settings: Settings) -> tuple[int, float]:
    """How many images are pulled at the least, and their GB; none for tasks that bring their files."""
    tasks = settings.tasks
    if tasks.source == GENERATED or settings.sandbox.back_end != "docker":
        return 0, 0.0
    gym = min(SWE_GYM_TRAINING, settings.dagger.rounds * tasks.tasks_per_round) + tasks.test
    return gym + tasks.unseen, gym * scale.value("image_gb") + tasks.unseen * scale.value("verified_image_gb")


def pulls_at_most(settings: Settings, phases: Sequence[Usage]) -> int:
    """How many images these phases pull if each pulls all of its own; that is so where not all can be kept."""
    count, gigabytes = pulls(settings)
    if gigabytes <= images_gb(settings):
        return count
    return round(sum(phase.episodes for phase in phases if not phase.kind.startswith(TRAIN)))


def pull_hours(count: int) -> float:
    """Hours that so many pulls take at a registry's limit."""
    return count / scale.value("pulls_per_hour")


def hours(phases: Sequence[Usage]) -> dict[str, float]:
    """Hours of collecting and exams, of training, and of grading."""
    kinds = {"episodes": 0.0, TRAIN: 0.0, GRADE: 0.0}
    for phase in phases:
        kinds[TRAIN if phase.kind.startswith(TRAIN) else GRADE if phase.kind == GRADE else "episodes"] += phase.seconds
    return {kind: seconds / 3600 for kind, seconds in kinds.items()}


def report(settings: Settings, phases: Sequence[Usage]) -> str:
    """All of it as text, each with its formula; what was not measured is said to be assumed."""
    queries, tokens = teacher_tokens(settings, phases)
    count, pulled = pulls(settings)
    spent, most = hours(phases), pulls_at_most(settings, phases)
    again = f" (only {images_gb(settings):,.0f} GB are kept: sandbox.images_gb)" if most > count else ""
    lines = [
        f"hours: {sum(spent.values()):,.0f} ({', '.join(f'{kind} {each:,.0f}' for kind, each in spent.items())})",
        f"teacher: {queries:,.0f} queries, {tokens.prompt:,} prompt tokens ({tokens.cached:,} cached), "
        f"{tokens.completion:,} completion tokens; {_bill(settings, tokens)}",
        "disk: " + ", ".join(f"{kind} {size:,.0f} GB" for kind, size in disk_gb(settings, phases).items()),
        f"images: {count:,} pulled at the least, {pulled:,.0f} GB in all; {most:,} at the most{again}. At Docker Hub's "
        f"limit {pull_hours(count):,.0f} to {pull_hours(most):,.0f} hours beside the above, less with a paid account",
    ]
    formulas = f"{__doc__.partition(chr(10))[2]}\nGPU memory:{memory.__doc__.partition(chr(10))[2]}"
    return "\n\n".join(
        [
            "\n".join(lines),
            f"GPU memory in GB:\n{memory_table(settings).round(1).to_string(na_rep='')}",
            "\n".join(fits(settings)),
            f"Formulas:\n{formulas.rstrip()}",
            f"Assumed and measured (data/plan/scale.json):\n{_assumed()}",
        ]
    )


def _bill(settings: Settings, tokens: Tokens) -> str:
    if not any((settings.labels.price_prompt, settings.labels.price_cached, settings.labels.price_completion)):
        return "no price is set (labels.price_prompt, price_cached, price_completion: money for a million tokens)"
    spent, limit = money(settings, tokens), settings.labels.money
    capped = f"; labels.money = {limit:g} is the limit of each of {len(RECIPES)} runs" if limit else ""
    return f"{spent:,.2f} of money at the prices of labels{capped}"


def _assumed() -> str:
    return "\n".join(
        f"  {name:<18}{row['value']:<8g}{'measured' if row['measured'] else 'ASSUMED'}  {row['unit']}; {row['source']}"
        for name, row in scale.assumptions().items()
    )
