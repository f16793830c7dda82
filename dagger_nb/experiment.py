"""The rounds: collect, label, train, and judge, each step found again on disk when it was done before."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dagger_nb import paths
from dagger_nb.episode import Conditions, Limits, Plan
from dagger_nb.errors import ConfigError
from dagger_nb.evaluation.grades import LOST, Grade, Status
from dagger_nb.evaluation.grading import grade_all, refuse_unjudged
from dagger_nb.evaluation.official import harness_for
from dagger_nb.evaluation.predictions import Prediction, write_predictions
from dagger_nb.fleet import CohortJob, Executor, in_cohorts, progress_line
from dagger_nb.mixing import STUDENT_ALONE, TEACHER_ALONE, Mixer
from dagger_nb.policies.protocol import Sampling
from dagger_nb.provenance import identity, provenance
from dagger_nb.recipes import Recipe, recipe
from dagger_nb.records import Label, Missing, StopReason, Task, Trajectory, digest
from dagger_nb.sandboxes import factory_for
from dagger_nb.settings import Settings
from dagger_nb.store import CohortRecord, RunStore, read_json, round_group, rounds_to_train_on, write_json
from dagger_nb.students import Version, quiet, renderer_of
from dagger_nb.tasks import tasks_of

if TYPE_CHECKING:
    import pandas as pd

Log = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Exam:
    """One way to judge a student: on which tasks, how it samples, and who else acts.

    `slips` replaces student turns at `evaluation.slip_rate`; `shadow` lets the teacher act and only asks the student.
    `diagnosed` exams are those whose states a teacher that is a model labels too; the scripted one labels them all.
    """

    name: str
    split: str
    sampled: bool = False
    slips: bool = False
    shadow: bool = False
    diagnosed: bool = False


EXAMS: Mapping[str, Exam] = {
    exam.name: exam
    for exam in (
        Exam("dev", "dev", diagnosed=True),
        Exam("test", "test", diagnosed=True),
        Exam("test-sampled", "test", sampled=True),
        Exam("test-slips", "test", slips=True),
        Exam("test-teacher-states", "test", shadow=True, diagnosed=True),
        Exam("longer", "longer"),
        Exam("unseen", "unseen"),
    )
}


class Experiment:
    """One recipe under some settings, in its run folder. Every method is a cache hit when its result exists."""

    def __init__(self, name: str, settings: Settings, fleet: Executor, log: Log = print) -> None:
        self.recipe: Recipe = recipe(name, settings)
        self.settings, self.fleet, self.log = settings, fleet, log
        config = identity(name, settings)
        self.store = RunStore(paths.run_folder(name, settings.seed, digest(config)), config)
        quiet()
        self._tried: set[tuple[str, int]] = set()  # cohorts that this process ran; none is run twice
        self.base = str(paths.checkpoint(settings.student.path))
        self.renderer = renderer_of(self.base, settings.student.template, settings.student.revision)

    # -- the rounds

    def run(self) -> Version:
        """All rounds of the recipe, then the manifest; returns the final student.

        Raises:
            ConfigError: tasks of the test could not be graded in these sandboxes; nothing was run.
        """
        if not self.store.done:
            refuse_unjudged(self.exam_tasks("test"), self.settings.sandbox)
        for round_ in range(1, self.recipe.rounds + 1):
            self.collect(round_)
            self.train(round_)
        if not self.store.done:
            self.store.finish(provenance(self.settings) | self.fleet.facts())
        return self.student_after(self.recipe.rounds)

    def collect(self, round_: int) -> list[CohortRecord]:
        """The episodes of a round and their labels, by the student of the round before."""
        group = round_group(round_)
        plans = plans_of(self.training_tasks(round_), round_)
        conditions = self._conditions(
            self.recipe.mixer, self.student_after(round_ - 1), self.settings.episode.temperature
        )
        title = f"{self.recipe.name} round {round_}/{self.recipe.rounds}"
        if self._index(round_).exists():  # what is trained on, or was, never changes
            return list(self.store.cohorts(group))
        return self._cohorts(group, plans, conditions, self.student_after(round_ - 1), title, round_)

    def training_tasks(self, round_: int) -> list[Task]:
        """Each round has tasks of its own; together all rounds of every recipe use the same tasks."""
        count = self.recipe.tasks_per_round
        start = self.settings.seed * TASKS_PER_SEED + (round_ - 1) * count
        return tasks_of(self.settings.tasks.source, "train", count, start=start)

    def train(self, round_: int) -> Path:
        """The adapter after a round; trained further from the one before (aggregation says on which rounds)."""
        folder = self.adapter_folder(round_)
        if not (folder / "fit.json").exists():
            with self.store.alone():
                if not (folder / "fit.json").exists():  # another process may have been at it
                    self._fit(round_, folder)
        return folder

    def _fit(self, round_: int, folder: Path) -> None:
        from dagger_nb.training.session import train_adapter

        self.fleet.rest()
        training = self.settings.training
        rounds = rounds_to_train_on(round_, training.aggregation, training.window)
        entries = self.store.entries(rounds)
        write_json(self._index(round_), [asdict(entry) for entry in entries])
        previous = self.adapter_folder(round_ - 1) if round_ > 1 else None
        train_adapter(
            self.store.load(entries),
            base=self.base,
            previous=previous,
            settings=self.settings,
            renderer=self.renderer,
            tasks={task.instance_id: task for r in rounds for task in self.training_tasks(r)},
            folder=folder,
            seed=self.settings.seed * 1000 + round_,
            log=lambda line: self.log(f"{self.recipe.name} round {round_}/{self.recipe.rounds} · {line}"),
        )

    def _index(self, round_: int) -> Path:
        """What a round trains on, written before its first step."""
        return self.store.root / round_group(round_) / "index.json"

    def adapter_folder(self, round_: int) -> Path:
        return self.store.root / round_group(round_) / "adapter"

    def student_after(self, round_: int) -> Version:
        """The student after a round; round 0 is the untrained base."""
        student = self.settings.student
        if round_ == 0:
            return Version(self.base, None, student.quantise, template=student.template, revision=student.revision)
        folder = self.adapter_folder(round_)
        name = read_json(folder / "fit.json")["adapter"][:12]
        return Version(self.base, str(folder), student.quantise, name, student.template, student.revision)

    def fit_report(self, round_: int) -> dict[str, Any]:
        """What the training of a round was and how it went (losses, labels, lessons, tokens, seconds)."""
        return read_json(self.adapter_folder(round_) / "fit.json")

    def bill(self) -> dict[str, pd.DataFrame]:
        """What the labels of rounds and exams have cost so far (tables "bill" and "calls"), where they are not free."""
        return self.fleet.bill(self.store.root.name)

    # -- exams

    def examine(self, exam_name: str, *, round_: int | None = None) -> list[CohortRecord]:
        """The student's episodes in an exam, labelled where it is diagnosed; `round_` judges an earlier student.

        Raises:
            ConfigError: some of its tasks could not be graded in these sandboxes.
        """
        exam, tasks = _exam(exam_name), self.exam_tasks(exam_name)
        refuse_unjudged(tasks, self.settings.sandbox)
        student = self.student_after(self.recipe.rounds if round_ is None else round_)
        group, plans = self.exam_group(exam, student), [Plan(task) for task in tasks]
        mixer = TEACHER_ALONE if exam.shadow else STUDENT_ALONE
        temperature = self.settings.evaluation.sampled_temperature if exam.sampled else 0.0
        conditions = self._conditions(mixer, student, temperature, slips=exam.slips, shadow=exam.shadow)
        conditions = replace(conditions, labelled=diagnosed(exam, self.settings))
        return self._cohorts(group, plans, conditions, student, f"{self.recipe.name} {exam.name}")

    def exam_tasks(self, exam_name: str) -> list[Task]:
        exam = _exam(exam_name)
        return tasks_of(self.settings.tasks.source, exam.split, exam_size(exam, self.settings))

    def grade(self, exam_name: str, *, round_: int | None = None) -> list[Grade]:
        """The verdict on each episode's patch, in task order, in a fresh sandbox; equal patches are graded once.

        Tests that do not run under pytest are run by swebench's command line, below the exam's folder.
        """
        records = self.examine(exam_name, round_=round_)
        student = self.student_after(self.recipe.rounds if round_ is None else round_)
        folder = self.store.root / self.exam_group(_exam(exam_name), student)
        trajectories = [trajectory for record in records for trajectory in record.trajectories]
        model_name = f"{self.recipe.name}-{student.name}"
        write_predictions(
            folder / "predictions.jsonl",
            [Prediction(t.instance_id, model_name, t.patch) for t in trajectories if not _broken(t)],
        )
        by_id = {task.instance_id: task for task in self.exam_tasks(exam_name)}
        verdicts = self._graded([(by_id[t.instance_id], t.patch) for t in trajectories], folder / "harness")
        grades = [
            Grade(t.instance_id, Status.INFRASTRUCTURE, detail=t.detail) if _broken(t) else verdict
            for t, verdict in zip(trajectories, verdicts, strict=True)
        ]
        self._tell_lost(f"{self.recipe.name} {exam_name}", grades)
        return grades

    def doubtful(self, exam_name: str) -> dict[str, str]:
        """Instances of an exam whose gold patch is not resolved here, each with its verdict: no student can solve them.

        Real ones may be broken (an image that has rotted, a machine too slow). Graded once, for every run. Of what was
        lost to the infrastructure nothing is known.
        """
        tasks = self.exam_tasks(exam_name)
        grades = self._graded([(task, task.patch) for task in tasks], self.store.root / "evaluation/gold" / exam_name)
        self._tell_lost(f"gold patches of {exam_name}", grades)
        judged = [grade for grade in grades if grade.status is not Status.INFRASTRUCTURE]
        return {grade.instance_id: grade.status.value for grade in judged if not grade.resolved}

    def _tell_lost(self, what: str, grades: Sequence[Grade]) -> None:
        """Say how many have no verdict, and why the first, in the words that `reproduction` looks for."""
        if lost := [one for one in grades if one.status is Status.INFRASTRUCTURE]:
            first = f"the first is {lost[0].instance_id}: {lost[0].detail[:300]}"
            self.log(f"{what}: {len(lost)} of {len(grades)} tasks have no verdict, {LOST}; {first}")

    def _graded(self, pairs: Sequence[tuple[Task, str]], folder: Path) -> list[Grade]:
        """The verdicts on patches; `folder` is for what swebench's command line judges."""
        sandbox, workers = self.settings.sandbox, self.settings.workers
        with factory_for(sandbox) as factory:  # no cache: no two gradings run the same commands
            harness = harness_for(factory, folder, workers=workers, log=self.log)
            return grade_all(pairs, factory, jobs=workers, store_path=gradebook(), harness=harness, log=self.log)

    def exam_group(self, exam: Exam, student: Version) -> str:
        """What decides an exam's cohorts and is not in the run's own configuration is in the group's name."""
        evaluation = self.settings.evaluation
        rate = f"-{evaluation.slip_rate:g}" if exam.slips else ""
        heat = f"-{evaluation.sampled_temperature:g}" if exam.sampled else ""
        return f"evaluation/{student.name}/{exam.name}{rate}{heat}-{exam_size(exam, self.settings)}"

    # -- cohorts

    def _conditions(
        self, mixer: Mixer, student: Version, temperature: float, *, slips: bool = False, shadow: bool = False
    ) -> Conditions:
        episode, seed = self.settings.episode, self.settings.seed
        limits = Limits(
            episode.max_turns,
            episode.context,
            episode.loop_repeats,
            episode.command_timeout_s,
            episode.observation_chars,
        )
        return Conditions(
            mixer=mixer,
            sampling=Sampling(temperature, episode.top_p, episode.max_new_tokens),
            run_seed=seed,
            policy=student.name,
            limits=limits,
            slip_rate=self.settings.evaluation.slip_rate if slips else 0.0,
            shadow=shadow,
        )

    def _cohorts(
        self, group: str, plans: Sequence[Plan], conditions: Conditions, student: Version, title: str, round_: int = 0
    ) -> list[CohortRecord]:
        """The cohorts of a group in order, those that are not settled yet run before."""
        run, sandbox, cache = self.store.root.name, self.settings.sandbox, observation_cache()
        jobs = [
            CohortJob(number, cohort, conditions, student, cache, run, round_, sandbox)
            for number, cohort in enumerate(in_cohorts(plans, self.settings.episode.cohort))
        ]
        found = self._settled(group, jobs)
        if len(found) < len(jobs):
            with self.store.alone():
                found |= self._settled(group, [job for job in jobs if job.number not in found])  # as in `train`
                self._play(group, [job for job in jobs if job.number not in found], title, len(jobs))
                found |= self._records(group, jobs)
                if lost := self._lost(jobs, found):
                    told = "cohorts with episodes that the infrastructure failed, run once more"
                    self.log(f"{title} · {told}: {len(lost)}")
                    self._play(group, lost, title, len(jobs))
                    found |= self._records(group, lost)
        return [found[job.number] for job in jobs]

    def _records(self, group: str, jobs: Sequence[CohortJob]) -> dict[int, CohortRecord | None]:
        """The cohorts of some jobs as they are on disk, by number."""
        return {job.number: self.store.read_cohort(group, job.number) for job in jobs}

    def _play(self, group: str, jobs: Sequence[CohortJob], title: str, total: int) -> None:
        self._tried.update((group, job.number) for job in jobs)
        before = {} if self.fleet.lockstep else self._records(group, jobs)
        todo = [_remainder(job, before.get(job.number)) for job in jobs]
        for done, (job, record, seconds) in enumerate(self.fleet.run(todo), start=total - len(jobs) + 1):
            known = before.get(job.number)
            whole = known.mended(record) if known else record
            self.store.write_cohort(group, job.number, whole)
            self.log(progress_line(title, done, total, whole, seconds))

    def _lost(self, jobs: Sequence[CohortJob], records: Mapping[int, CohortRecord]) -> list[CohortJob]:
        """The jobs with episodes that infrastructure failed: a round is trained on as it is when all others are done.

        Episodes that depend on each other would all run again; those wait for the next process.
        """
        lockstep = self.fleet.lockstep
        return [job for job in jobs if not lockstep and any(map(_broken, records[job.number].trajectories))]

    def _settled(self, group: str, jobs: Sequence[CohortJob]) -> dict[int, CohortRecord]:
        """The cohorts that are done; what infrastructure failed in the others is run again by the next process."""
        return {
            number: record
            for number, record in self._records(group, jobs).items()
            if record and ((group, number) in self._tried or not any(map(_broken, record.trajectories)))
        }


def _remainder(job: CohortJob, known: CohortRecord | None) -> CohortJob:
    """The job without the episodes that a record of it already holds unspoilt."""
    if known is None:
        return job
    pairs = zip(job.plans, known.trajectories, strict=True)
    return replace(job, plans=tuple(plan for plan, trajectory in pairs if _broken(trajectory)))


def plans_of(tasks: Sequence[Task], round_: int) -> list[Plan]:
    """One episode a task; where a round holds a task several times, the attempts tell them apart."""
    seen: Counter[str] = Counter()
    plans = []
    for task in tasks:
        plans.append(Plan(task, attempt=seen[task.instance_id], round=round_))
        seen[task.instance_id] += 1
    return plans


TASKS_PER_SEED = 100_000  # training seeds draw disjoint training tasks


def gradebook() -> Path:
    """The file of all grades, by task content and patch: whoever writes the same patch gets the same grade."""
    return paths.cache() / "grades.jsonl"


def _broken(trajectory: Trajectory) -> bool:
    return trajectory.stop is StopReason.INFRASTRUCTURE


def observation_cache() -> Path:
    """The file in which all workers remember what commands printed."""
    return paths.cache() / "observations.sqlite"


def exam_size(exam: Exam, settings: Settings) -> int:
    """How many tasks an exam has: those of its split, and only `tasks.diagnostic` of them in a diagnosis."""
    size = getattr(settings.tasks, exam.split)
    return min(settings.tasks.diagnostic, size) if exam.sampled or exam.slips or exam.shadow else size


def diagnosed(exam: Exam, settings: Settings) -> bool:
    """Whether the teacher labels the states of an exam: what a scripted one says costs nothing."""
    return exam.diagnosed or settings.teacher.scripted


def _exam(name: str) -> Exam:
    if name not in EXAMS:
        raise ConfigError(f"unknown exam {name!r}; exams: {', '.join(EXAMS)}")
    return EXAMS[name]


def all_trajectories(records: Sequence[CohortRecord]) -> Iterator[Trajectory]:
    """Every trajectory of some cohorts, in order."""
    return (trajectory for record in records for trajectory in record.trajectories)


def all_labels(records: Sequence[CohortRecord]) -> Iterator[Label]:
    """Every label of some cohorts, in order."""
    return (label for record in records for label in record.labels)


def all_missing(records: Sequence[CohortRecord]) -> Iterator[Missing]:
    """Every state of some cohorts that was to be labelled and has no label, in order."""
    return (state for record in records for state in record.missing)
