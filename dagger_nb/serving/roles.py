"""The two servers of an experiment, as its settings want them: the student's and a teacher's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from dagger_nb import paths
from dagger_nb.revisions import recorded
from dagger_nb.serving.engine import ServedModel, find_engine, longest
from dagger_nb.serving.server import Server
from dagger_nb.serving.weights import local_checkpoint, served_folder
from dagger_nb.settings import Settings, TeacherSettings

Progress = Callable[[str], None]


def student_server(settings: Settings, *, log: Path, progress: Progress = print) -> Server:
    """A server, not started yet, of the base that the student is trained on, with room for its adapters.

    Raises:
        ConfigError: weights that the engine cannot load, a context that does not fit.
        EnvironmentProblem: no vLLM, or no checkpoint.
    """
    engine, student, serving = find_engine(settings.serving.python), settings.student, settings.serving
    base = str(paths.checkpoint(student.path))
    folder = served_folder(base, weights=serving.weights, engine=engine, revision=student.revision)
    nf4, rank = serving.weights == "nf4", settings.lora.rank
    model = ServedModel(folder, settings.episode.context, rank=rank, base=base, nf4=nf4)
    return Server(model, engine, serving, log=log, progress=progress)


def teacher_server(settings: Settings, *, log: Path, progress: Progress = print) -> Server:
    """A server, not started yet, of the teacher's checkpoint as it is, under the name that the endpoint policy asks.

    It reads what the longest episode has and a whole answer to it, where the model can.

    Raises:
        ConfigError: the context does not fit.
        EnvironmentProblem: no vLLM, or no checkpoint.
    """
    teacher = settings.teacher
    folder = local_checkpoint(str(paths.checkpoint(teacher.path)), teacher.revision)
    episode = settings.episode
    context = max(episode.context, min(episode.context + episode.max_new_tokens, longest(folder)))
    model = ServedModel(folder, int(context), name=teacher.path)
    return Server(model, find_engine(settings.serving.python), settings.serving, log=log, progress=progress)


def at(server: Server, teacher: TeacherSettings) -> TeacherSettings:
    """The teacher's settings with the address of its running server and, of a hub's model, the commit that it serves.

    By that commit its answers are kept and its labels named, whatever is the newest one later.
    """
    commit = recorded(str(paths.checkpoint(teacher.path)), teacher.revision)
    return replace(teacher, endpoint=f"{server.url}/v1", revision=commit)
