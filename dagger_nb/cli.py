"""The command line: `dagger-nb reproduce | run | doctor | plan | show | clean`.

Exit codes: 0 done, 1 a check failed, 2 a refused input or a failed run (one line on stderr says why and what to
do next), 130 interrupted. Rooms are imported inside the commands, so that `--help` is quick and a Python that
is too old gets a sentence instead of a traceback.
"""

from __future__ import annotations

import argparse
import errno
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dagger_nb.errors import ConfigError, DaggerError

if TYPE_CHECKING:
    from dagger_nb.settings import Settings

OLDEST_PYTHON = (3, 11)
SPENDING = ("02", "03", "04")  # notebooks that ask models and train

_EXAMPLES = """examples:
  dagger-nb doctor                                  what this machine has and lacks
  dagger-nb reproduce                               notebooks 00 to 07 in the tiny profile; go on after a stop
  dagger-nb reproduce --profile study --seed 3      the long version, another seed
  dagger-nb run 03 -p seed=1                        one notebook by its number, with a parameter
  dagger-nb reproduce -p training.passes=2          a setting in the place of the profile's, in folders of its own
  dagger-nb plan --profile study                    tokens, test runs and minutes before they are spent
  dagger-nb show sft-s0-1a2b3c4d                    what a run folder holds
  dagger-nb clean runs --yes                        remove run folders
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    if sys.version_info < OLDEST_PYTHON:
        print(f"error: this is Python {sys.version.split()[0]}; dagger-nb needs 3.11 or newer", file=sys.stderr)
        return 2
    options = _parser().parse_args(arguments)
    try:
        return options.command(options)
    except DaggerError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader went away, as in `dagger-nb show RUN | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        print(f"error: {error}; free space or permissions, then give the same command again", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; give the same command again to go on", file=sys.stderr)
        return 130


# --- commands ---------------------------------------------------------------------------------------------


def _reproduce(options: argparse.Namespace) -> int:
    from dagger_nb import paths, report, reproduction

    values = _values(options)
    _refuse_unready(values)
    limit_s = _limit_s(options, values)
    profile, seed, overrides = values.pop("profile"), values.pop("seed"), values.get("overrides", {})
    done = reproduction.reproduce(profile, seed, values, timeout_s=limit_s, force=options.force, say=_say)
    folder, tables = paths.report_folder(profile, seed, overrides), paths.result_folder(profile, seed, overrides)
    title = f"dagger-nb: profile {profile}, seed {seed}"
    title += "".join(f", {name} = {value!r}" for name, value in overrides.items())
    executed = [result.output for result in done]
    index = report.build(executed, folder / "html", title=title, results=tables, figures=paths.figures())
    _say(f"notebooks: {folder}  figures: {paths.figures()}  results: {tables}  report: {index}")
    return 0


def _run(options: argparse.Namespace) -> int:
    from dagger_nb import paths, runner

    source, values = _find_notebook(options.notebook), _values(options)
    if source.name[:2] in SPENDING:
        _refuse_unready(values)
    output = paths.report_folder(values["profile"], values["seed"], values.get("overrides")) / source.name
    result = runner.run_notebook(source, values, output=output, timeout_s=_limit_s(options, values), say=_say)
    _say(f"finished in {result.seconds:.0f} s: {result.output}")
    return 0


def _refuse_unready(values: Mapping[str, Any]) -> None:
    """Refuse what cannot work, and a served profile that this machine lacks something for, before hours are spent."""
    from dagger_nb import crew, provenance
    from dagger_nb.doctor.examination import refuse_unready

    settings = _settings(values)
    crew.refuse_teacher(settings)
    if settings.served:
        overrides = {"seed": values["seed"], **values.get("overrides", {})}
        refuse_unready(values["profile"], overrides, begun=provenance.begun(settings))


def _limit_s(options: argparse.Namespace, values: Mapping[str, Any]) -> float:
    from dagger_nb import runner

    return options.timeout or (30 * 24 * 3600.0 if _settings(values).served else runner.TIMEOUT_S)


def _values(options: argparse.Namespace) -> dict[str, Any]:
    """The values for notebooks: --profile, --seed and every -p; settings among them are proven and become `overrides`.

    `overrides` is left out where there are none.
    """
    from dagger_nb import config

    values = {"profile": options.profile, "seed": options.seed, **config.pairs(options.parameter)}
    if "overrides" in values:
        raise ConfigError("-p overrides is refused; give each setting by its name, for example -p training.passes=2")
    known = set(config.setting_names()) - {"profile", "seed"}
    overrides = {name: values.pop(name) for name in list(values) if "." in name or name in known}
    values |= {"overrides": overrides} if overrides else {}
    _settings(values)
    return values


def _settings(values: Mapping[str, Any]) -> Settings:
    """The settings that the notebooks will have with these values. Raises ConfigError as `config.load`."""
    from dagger_nb import config

    return config.load(values["profile"], {"seed": values["seed"], **values.get("overrides", {})})


def _find_notebook(name: str) -> Path:
    """A notebook by path, by name or by number."""
    from dagger_nb import config, paths, runner

    if Path(name).is_file():
        return Path(name)
    known = runner.list_notebooks(paths.notebooks())
    for path in known:
        if name in (path.name, path.stem, path.stem.partition("_")[0]):
            return path
    names = [path.stem for path in known]
    raise ConfigError(f"no notebook {name!r}{config.nearest(name, names)}; there are: {', '.join(names) or 'none'}")


def _doctor(options: argparse.Namespace) -> int:
    from dagger_nb import config, deviations
    from dagger_nb.doctor import examination

    overrides = config.pairs(options.parameter)
    settings = config.load(options.profile, overrides)
    checks = examination.examine(options.profile, overrides)
    _say(examination.table(checks))
    if settings.served:
        _say(f"\nwhere profile {options.profile} leaves the paper:\n{deviations.text(settings)}")
    return 1 if any(check.status == "fail" for check in checks) else 0


def _plan(options: argparse.Namespace) -> int:
    from dagger_nb import config
    from dagger_nb.planning.plan import plan

    settings = config.load(options.profile, {"seed": options.seed, **config.pairs(options.parameter)})
    if options.log and not options.measure:
        raise ConfigError("--log tells --measure how long turns took; add --measure, or leave it out")
    if options.check or options.measure:
        return _plan_and_runs(settings, options)
    _say(str(plan(settings)))
    return 0


def _plan_and_runs(settings: Settings, options: argparse.Namespace) -> int:
    """Rates from this machine's runs, or the plan beside them: exit code 1 where it missed."""
    from dagger_nb import results
    from dagger_nb.fleet import Fleet
    from dagger_nb.planning import comparison, plan, rates

    runs = results.runs(settings, Fleet(1))
    if options.measure:
        _say(f"wrote {rates.write_rates(settings, runs, options.log)}")
        return 0
    table = comparison.compare(plan.plan(settings), runs.values())
    _say(table.round(2).to_string())
    missed = comparison.misses(table)
    _say("\n".join(missed) or f"the plan of {settings.profile!r} holds within a factor of {comparison.TOLERANCE:g}")
    return 1 if missed else 0


def _show(options: argparse.Namespace) -> int:
    from dagger_nb import store

    folder = _find_run(options.run)
    _say(f"{folder}: {'complete' if (folder / 'DONE').exists() else 'unfinished; the same command goes on with it'}")
    _say_json("config", store.read_json(folder / "config.json"))
    if not (folder / "manifest.json").exists():
        return 0
    manifest = store.read_json(folder / "manifest.json")
    files = manifest.pop("files", {})
    _say_json("manifest", manifest)
    changed = [name for name, digest in files.items() if not _is_as_written(folder / name, digest)]
    _say(
        f"files: {len(files)}, "
        + (f"changed since they were written: {', '.join(changed)}" if changed else "as written")
    )
    return 1 if changed else 0


def _is_as_written(path: Path, digest: str) -> bool:
    from dagger_nb import store

    return path.is_file() and store.file_sha256(path) == digest


def _say_json(title: str, value: object) -> None:
    _say("\n".join([f"{title}:", *(f"  {name}: {leaf}" for name, leaf in _flat(value))]))


def _find_run(name: str) -> Path:
    from dagger_nb import config, paths

    for folder in (Path(name), paths.runs() / name):
        if folder.is_dir():
            return folder
    known = sorted(path.name for path in paths.runs().glob("*/"))
    raise ConfigError(f"no run folder {name!r}{config.nearest(name, known)}; there are: {', '.join(known) or 'none'}")


def _flat(value: object, prefix: str = "") -> list[tuple[str, object]]:
    """Dotted names and leaf values of nested JSON."""
    if not isinstance(value, Mapping):
        return [(prefix, value)]
    return [row for key in value for row in _flat(value[key], f"{prefix}.{key}" if prefix else str(key))]


def _clean(options: argparse.Namespace) -> int:
    from dagger_nb import paths

    kinds = {"runs": paths.runs(), "cache": paths.cache(), "reports": paths.reports()}
    if options.what == "answers":  # they were paid for: only by name
        kinds["answers"] = paths.answers().parent
    chosen = [folder for name, folder in kinds.items() if options.what in ("all", name) and folder.is_dir()]
    for folder in chosen:
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        _say(f"{'removing' if options.yes else 'would remove'} {folder} ({size / 1e6:.1f} MB)")
        if options.yes:
            shutil.rmtree(folder)
    if not chosen:
        _say("nothing to remove")
    elif not options.yes:
        _say("nothing was removed; add --yes to remove")
    return 0


# --- arguments --------------------------------------------------------------------------------------------


def _say(text: str) -> None:
    print(text, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dagger-nb",
        description="DAgger for LLM agents, notebook first (arXiv 2605.12913).",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    reproduce = _command(commands, "reproduce", _reproduce, "run every notebook in order and build the report")
    reproduce.add_argument("--force", action="store_true", help="run finished notebooks again as well")
    run = _command(commands, "run", _run, "run one notebook")
    run.add_argument("notebook", metavar="NOTEBOOK", help="a number (03), a name or a path")
    for command in (reproduce, run):
        _profile_options(command)
        text = "seconds for a notebook (default: 6 hours, and 30 days where models are served)"
        command.add_argument("--timeout", type=_seconds, metavar="S", help=text)
    doctor = _command(commands, "doctor", _doctor, "say what this machine has and lacks")
    doctor.add_argument("--profile", default="tiny", help="for which profile (default: tiny)")
    _parameter_option(doctor)
    plan = _command(commands, "plan", _plan, "predict tokens, test runs and minutes")
    _profile_options(plan)
    instead = plan.add_mutually_exclusive_group()
    instead.add_argument("--check", action="store_true", help="compare with this machine's runs: 1 where it missed")
    instead.add_argument("--measure", action="store_true", help="write data/plan/rates.json from this machine's runs")
    plan.add_argument("--log", type=Path, nargs="+", default=[], help="with --measure: logs, executed notebooks")
    show = _command(commands, "show", _show, "say what a run folder holds")
    show.add_argument("run", metavar="RUN", help="name below data/runs, or a path")
    clean = _command(commands, "clean", _clean, "list what can be removed, and remove it with --yes")
    clean.add_argument("what", nargs="?", default="all", choices=["all", "runs", "cache", "reports", "answers"])
    clean.add_argument("--yes", action="store_true", help="remove")
    return parser


def _command(commands: argparse._SubParsersAction, name: str, function: object, text: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
    parser.set_defaults(command=function)
    return parser


def _profile_options(parser: argparse.ArgumentParser) -> None:
    profiles = "smoke, tiny, study, qwen3-0.6b, qwen3-4b or qwen3-8b (default: tiny)"
    parser.add_argument("--profile", default="tiny", help=profiles)
    parser.add_argument("--seed", type=int, default=0, help="root of all randomness (default: 0)")
    _parameter_option(parser)


def _parameter_option(parser: argparse.ArgumentParser) -> None:
    text = "a notebook's parameter, or a setting in the place of the profile's (training.passes=2); may be repeated"
    parser.add_argument("-p", "--parameter", action="append", default=[], metavar="NAME=VALUE", help=text)


def _seconds(text: str) -> float:
    seconds = float(text)
    if not seconds > 0:
        raise argparse.ArgumentTypeError("must be more than 0 seconds")
    return seconds
