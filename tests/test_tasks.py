"""The generated tasks: determinism, the promises that a task makes, and real git and pytest on samples."""

from __future__ import annotations

import builtins
import itertools
import keyword
import os
import random
import re
import signal
import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from swebench.harness.log_parsers import PARSER_REGISTRY
from swebench.harness.utils import make_test_spec

from dagger_nb import tasks
from dagger_nb.errors import ConfigError, DataError, SandboxError
from dagger_nb.records import to_json
from dagger_nb.sandboxes import local_factory
from dagger_nb.tasks import SPLITS, content_hash, generate, git, gold, validation, words
from dagger_nb.tasks.choices import CHOICES
from dagger_nb.tasks.execution import Program
from dagger_nb.tasks.markup import SLOT
from dagger_nb.tasks.repository import Redraw, draw_case, draw_repository
from dagger_nb.tasks.shapes import CALLING, CLASSES, LEAVES
from dagger_nb.tasks.splits import HELD_OUT_KINDS, KINDS
from dagger_nb.tasks.verdicts import VALIDATED, read_verdicts, validate_all, verdicts_path

SHAPES = LEAVES + CALLING + CLASSES
PINNED = {
    ("pretrain", 7): "655d64c18c01d495f580a6068e24dce5928eaa3c445929d62342babc470bd510",
    ("train", 0): "c0529fd3c2eb32de5145454855c27408893563827ea43fee7e4579fa34bdac06",
    ("dev", 3): "69ede745ceb0512d28ff893d025fb5e5dc5f7ae151dfebb195a96ab2521a8be5",
    ("test", 11): "237bb8a90f6797088783e410022d63c21f33d73ea418d4cd9e1ce8986dd3b68d",
    ("longer", 1): "c6f9dd9dc90d347d4b5d18845b3125bd5d47ed6103a853c44791bf0c5b7aa615",
    ("unseen", 5): "1bee1ba46fda020d9fc2db7848388321b07e2e4a3c57ea24f0bb5d2520c42090",
}
places = st.sampled_from(sorted(SPLITS)).flatmap(lambda name: st.tuples(st.just(name), st.integers(0, 199)))


@pytest.fixture(scope="module")
def sample():
    """Forty tasks of each split."""
    return {name: tasks.tasks(name, 40) for name in SPLITS}


@pytest.fixture(scope="module")
def factory():
    return local_factory()


def mended(task, keep=()):
    """The task's files with every gold edit made but those in `keep`."""
    files = {**task.files, **validation.gold_files(task)}
    for edit in keep:
        lines = files[edit.path].split("\n")
        lines[edit.line - 1] = edit.old
        files[edit.path] = "\n".join(lines)
    return files


def hidden_files(task):
    """The files that the test patch adds."""
    parts = re.split(r"diff --git a/\S+ b/(\S+)\n", task.test_patch)[1:]
    texts = ["\n".join(line[1:] for line in body.split("\n")[4:-1]) + "\n" for body in parts[1::2]]
    return dict(zip(parts[::2], texts, strict=True))


def failing(files, visible_only=False):
    tests = sorted(path for path in files if path.startswith("tests/"))
    return Program(files).failing(path for path in tests if gold.visible(path) or not visible_only)


# --- the same bytes everywhere -------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", PINNED, ids=str)
def test_content_is_pinned(place):
    assert content_hash(generate(*place)) == PINNED[place]


def test_tasks_are_a_window_of_generate():
    assert tasks.tasks("train", 2, start=5) == [generate("train", 5), generate("train", 6)]


@pytest.mark.parametrize("place", [("nowhere", 0), ("train", -1), ("dev", 200), ("test", 400), ("longer", 200)])
def test_unknown_places_are_refused(place):
    with pytest.raises(ConfigError, match=place[0]):
        generate(*place)


def test_no_word_is_a_builtin_a_keyword_or_a_standard_module():
    pairs = itertools.chain(*words.NUMBERS, *words.NAMES, *words.LOCALS.values())
    names = {*pairs, *words.AMOUNTS, *words.TEXTS, *words.LETTERS, *words.TABLES, "row", "i", "j"}
    assert not {name for name in names if keyword.iskeyword(name) or hasattr(builtins, name)}
    assert not set(words.PACKAGES) & set(sys.stdlib_module_names)
    assert not [verb for shape in SHAPES for verb in shape.verbs if verb.startswith("test")]


# --- what every task promises --------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(places)
def test_promises(place):
    task, spec = generate(*place), SPLITS[place[0]]
    edits = gold.gold_edits(task)
    assert len(edits) == len(task.bug_kinds) and spec.bugs[0] <= len(edits) <= spec.bugs[1]
    assert set(task.bug_kinds) <= set(spec.kinds)
    assert not spec.must_kinds or set(task.bug_kinds) & set(spec.must_kinds)
    assert len({(edit.path, edit.function) for edit in edits}) == len(edits)
    assert edits == tuple(sorted(edits, key=lambda edit: (edit.path, edit.line)))
    for edit, kind in zip(edits, task.bug_kinds, strict=True):
        assert (kind == "wrong_import") == (not edit.function)
        assert edit.function or edit.old.split(" import ")[1] == edit.new.split(" import ")[1]  # no name misspelt
        assert kind != "missing_return" or edit.new.strip() == f"return {edit.old.strip()}"
        assert task.files[edit.path].count(edit.old.strip()) == 1
        indents = [len(text) - len(text.lstrip()) for text in (edit.old, edit.new)]
        assert indents[0] == indents[1] and edit.old != edit.new
        assert edit.function or (edit.old.startswith("from ") and edit.new.startswith("from "))
    assert task.base_commit == git.commit_hash(task.files)
    assert len(task.problem_statement.split()) <= 40


@settings(max_examples=40, deadline=None)
@given(places)
def test_every_left_over_bug_is_seen(place):
    task = generate(*place)
    edits, hidden = gold.gold_edits(task), hidden_files(task)
    assert failing(mended(task) | hidden) == set()
    assert failing({**task.files, **hidden}) == set(task.FAIL_TO_PASS)
    every = {*task.FAIL_TO_PASS, *task.PASS_TO_PASS}
    assert len(every) == len(task.FAIL_TO_PASS) + len(task.PASS_TO_PASS)
    for size in range(1, len(edits) + 1):
        for left in itertools.combinations(edits, size):
            assert failing(mended(task, keep=left), visible_only=True)


def test_outcomes_do_not_depend_on_the_order_of_imports(sample):
    for task in sample["longer"] + sample["unseen"]:
        files = {**task.files, **hidden_files(task)}
        tests = sorted(path for path in files if path.startswith("tests/"))
        alone = set().union(*(Program(files).failing([path]) for path in tests))
        assert alone == set(task.FAIL_TO_PASS) == Program(files).failing(tests[::-1])


def test_code_is_short_and_needs_no_escapes(sample):
    for task in itertools.chain(*sample.values()):
        for path, text in task.files.items():
            assert "\\" not in text and text.isascii()
            assert '"' not in text.replace('"""', "")
            assert max(map(len, mended(task)[path].split("\n"))) <= 72, path
            assert max(map(len, text.split("\n"))) <= 80, path  # a bug may make its line longer
            if path.startswith("tests/") or not path.endswith(".py"):
                continue
            assert path.endswith("__init__.py") or text.startswith('"""')
            for first, last in gold.functions(text).values():
                assert last - first <= 8


def test_modules_and_tests(sample):
    for name, drawn in sample.items():
        for task in drawn:
            modules = [path for path in task.files if re.fullmatch(r"\w+/[a-z]+\.py", path) and "tests/" not in path]
            assert SPLITS[name].modules[0] <= len(modules) <= SPLITS[name].modules[1]
            assert task.files["pytest.ini"].startswith("[pytest]\naddopts = -q --tb=no")
            for path in modules:
                functions = [name for name in gold.functions(task.files[path]) if not name.endswith("__init__")]
                module = path.split("/")[1]
                tests = re.findall(r"def (\w+)", task.files[f"tests/test_{module}"])
                assert [gold.function_under_test(test) for test in tests] == functions
                assert 3 <= len(functions) <= 4


def test_every_word_of_a_docstring_choice_is_written_out():
    for shape in SHAPES:
        said = " ".join(line for line in shape.body if "'''" in line or '"""' in line or line.lstrip()[:1] == "#")
        used = {match[2] for line in shape.body for match in SLOT.finditer(line) if match[2]}
        assert used <= set(re.findall(r"\$([a-z]+)", said)), shape.key
        assert used <= set(CHOICES)


def test_every_shape_and_kind_occurs(sample):
    drawn = [task for split in sample.values() for task in split]
    assert {kind for task in drawn for kind in task.bug_kinds} == {*KINDS, *HELD_OUT_KINDS}
    shapes = set()
    for seed in range(400):
        try:
            repository = draw_repository(random.Random(f"shapes/{seed}"), (3, 4))
        except Redraw:
            continue
        shapes |= {unit.shape for module in repository.modules for unit in module.units}
    assert shapes == {shape.key for shape in SHAPES}
    assert len(SHAPES) >= 100


def test_no_bug_of_any_shape_runs_for_ever():
    def stop(number, frame):
        raise TimeoutError("a bug makes an endless loop")

    previous = signal.signal(signal.SIGALRM, stop)
    signal.alarm(30)
    try:
        ended = sum(run_all_faults(random.Random(f"faults/{seed}")) for seed in range(60))
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)
    assert ended > 1000  # and the alarm did not go off


def run_all_faults(rng):
    """Call every function of a repository with every fault; returns how many calls ended."""
    try:
        repository = draw_repository(rng, (3, 4))
    except Redraw:
        return 0
    ended = 0
    for unit in (unit for module in repository.modules for unit in module.units):
        cases = [draw_case(rng, probe, repository.space) for probe in unit.probes for _ in range(2)]
        for fault in unit.faults:
            space = dict(repository.space)
            exec("\n".join([*unit.lines[: fault.line], fault.text, *unit.lines[fault.line + 1 :]]), space)
            for case in cases:
                try:
                    eval(case.call, space)
                except TimeoutError:
                    raise
                except Exception:
                    pass
                ended += 1
    return ended


# --- splits --------------------------------------------------------------------------------------------------------


def test_splits_share_no_repository(sample):
    seen = {name: {git.commit_hash(mended(task)) for task in drawn} for name, drawn in sample.items()}
    seen_too = {name: {content_hash(task) for task in drawn} for name, drawn in sample.items()}
    for one, two in itertools.combinations(SPLITS, 2):
        assert not seen[one] & seen[two] and not seen_too[one] & seen_too[two]
    assert all(len(hashes) == 40 for hashes in seen.values())
    assert len({spec.seed for spec in SPLITS.values()}) == len(SPLITS)


def test_held_out_kinds_are_held_out(sample):
    for name, spec in SPLITS.items():
        assert bool(set(spec.kinds) & set(HELD_OUT_KINDS)) == (name == "unseen")
        held_out = [set(task.bug_kinds) & set(HELD_OUT_KINDS) for task in sample[name]]
        assert all(held_out) if name == "unseen" else not any(held_out)


# --- the teacher's view --------------------------------------------------------------------------------------------

FILES = {
    "shop/text.py": '"""Text."""\n\n\ndef join_all(words):\n    """Join."""\n    return \'-\'.join(words)\n\n\n'
    'class Box:\n    """Box."""\n\n    def total(self):\n        """One."""\n        return 1\n',
    "shop/cart.py": '"""Cart."""\n\nfrom shop.text import join_all, Box\n\n\ndef show_cart(words):\n    """Show."""\n'
    "    return join_all([str(Box().total())] + words)\n",
    "tests/test_cart.py": "def test_show_cart():\n    assert True\n",
}


def test_call_graph_and_locate():
    graph = {"join_all": (), "Box.total": (), "show_cart": ("join_all", "Box.total")}
    assert gold.call_graph(FILES) == graph
    assert gold.locate(FILES, "show_cart") == ("shop/cart.py", 6, 8)
    assert gold.locate(FILES, "Box.total") == ("shop/text.py", 12, 14)
    with pytest.raises(DataError, match="no file"):
        gold.locate(FILES, "test_show_cart")


def test_calls_go_across_modules_up_to_three_deep(sample):
    depths = set()
    for task in itertools.chain(*sample.values()):
        graph = gold.call_graph(mended(task))

        def depth(name, graph=graph):
            return max((1 + depth(callee) for callee in graph[name]), default=0)

        for caller, callees in graph.items():
            depths.add(depth(caller))
            assert all(gold.locate(task.files, c)[0] != gold.locate(task.files, caller)[0] for c in callees)
    assert depths == {0, 1, 2, 3}


@pytest.mark.parametrize("function", ["total_price", "Box.total", "Box.after_all"])
def test_test_names_round_trip(function):
    assert gold.function_under_test("tests/test_a.py::" + gold.test_name(function)) == function


def test_a_patch_that_does_not_fit_is_refused():
    task = generate("train", 0)
    edit = gold.gold_edits(task)[0]
    files = {**task.files, edit.path: task.files[edit.path].replace(edit.old, edit.new)}
    with pytest.raises(DataError, match="does not fit"):
        gold.gold_edits(replace(task, files=files))
    added = task.patch.replace(f"-{edit.old}\n", "", 1)
    with pytest.raises(DataError, match="does not fit"):
        gold.gold_edits(replace(task, patch=added))


# --- real git ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", [("train", 1), ("unseen", 0), ("longer", 0)], ids=str)
def test_git_agrees(place, tmp_path):
    task = generate(*place)
    for path, text in task.files.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(text)
    who = {f"GIT_{role}_{what}": value for role in ("AUTHOR", "COMMITTER") for what, value in
           (("NAME", git.AUTHOR), ("EMAIL", git.EMAIL), ("DATE", git.DATE))}  # fmt: skip
    environment = {**os.environ, **who, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}

    def run(*arguments, text=None):
        command = ["git", *arguments]
        return subprocess.run(
            command, cwd=tmp_path, env=environment, input=text, text=True, check=True, capture_output=True
        ).stdout.strip()

    run("init", "-q")
    run("add", "-A")
    run("commit", "-q", "-m", git.MESSAGE)
    assert run("rev-parse", "HEAD") == task.base_commit
    run("apply", "-", text=task.patch)
    run("apply", "-", text=task.test_patch)
    after = {**mended(task), **hidden_files(task)}
    assert {path: (tmp_path / path).read_text() for path in after} == after
    run("add", "-A")
    assert sorted(run("ls-files").split("\n")) == sorted(after)


# --- real pytest ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["wrong_import", "missing_return"])
def test_real_pytest_agrees(kind, factory):
    task = next(task for task in (generate("test", i) for i in itertools.count()) if kind in task.bug_kinds)
    assert tasks.validate(task, factory) == tasks.Verdict(content_hash(task), task.instance_id)
    wrong = replace(task, FAIL_TO_PASS=task.FAIL_TO_PASS[1:], PASS_TO_PASS=task.PASS_TO_PASS + task.FAIL_TO_PASS[:1])
    assert task.FAIL_TO_PASS[0] in tasks.validate(wrong, factory).problem


def test_swebench_reads_the_script_and_its_output(factory):
    task = generate("dev", 0)
    spec = make_test_spec(task.to_instance())
    with factory.open(task) as sandbox:
        seen = PARSER_REGISTRY[spec.log_parser](sandbox.run(spec.eval_script, 60).output, spec)
        ours = validation.run_tests(task, sandbox)
    assert ours == {name: status for name, status in seen.items() if name.startswith("tests/")}
    assert {name for name in spec.PASS_TO_PASS if seen.get(name) == "PASSED"} == set(task.PASS_TO_PASS)
    assert not {name for name in spec.FAIL_TO_PASS if seen.get(name) == "PASSED"}


# --- verdicts ------------------------------------------------------------------------------------------------------


def test_committed_verdicts_are_on_these_tasks_and_valid():
    committed = read_verdicts(verdicts_path())
    assert len(committed) == sum(VALIDATED.values())
    assert all(verdict.valid for verdict in committed.values())
    for split, count in VALIDATED.items():
        for index in range(0, count, 5):
            assert tasks.verdict_of(generate(split, index)).instance_id == f"dagger-nb__{split}-{index:05d}"


def test_recheck_agrees_with_the_committed_verdicts(factory):
    assert len(tasks.recheck(2, 7, factory)) == 2


def test_validation_goes_on_where_it_stopped(factory, tmp_path, monkeypatch):
    path, drawn, runs = tmp_path / "verdicts.jsonl", tasks.tasks("dev", 3), []

    def one(task, factory):
        if not runs:
            runs.append("failed")
            raise SandboxError("busy")
        runs.append(task.instance_id)
        return tasks.Verdict(content_hash(task), task.instance_id)

    monkeypatch.setattr("dagger_nb.tasks.verdicts.validate", one)
    validate_all(drawn[1:2], path, 1, factory)
    with open(path, "a") as file:
        file.write('{"hash": "torn')
    verdicts = validate_all(drawn, path, 1, factory)
    assert runs == ["failed", drawn[1].instance_id, drawn[0].instance_id, drawn[2].instance_id]
    assert list(read_verdicts(path).values()) == verdicts
    path.write_text("[]\n" + path.read_text())
    with pytest.raises(DataError, match=":1 is not a verdict"):
        read_verdicts(path)


def test_tasks_survive_a_file(tmp_path):
    path, drawn = tmp_path / "tasks.jsonl", tasks.tasks("train", 2)
    path.write_text("".join(to_json(task) + "\n" for task in drawn))
    assert tasks.load_jsonl(path) == drawn
    path.write_text(path.read_text()[:-20])
    with pytest.raises(DataError, match="not a complete Task"):
        tasks.load_jsonl(path)


def test_only_the_content_is_hashed():
    task = generate("train", 0)
    assert content_hash(replace(task, instance_id="x", split="y", image="z")) == content_hash(task)
    assert content_hash(replace(task, patch="")) != content_hash(task)
