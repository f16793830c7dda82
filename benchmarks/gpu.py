"""Training at the paper's scale: what labelled trajectories of 8K to 64K tokens cost on one GPU.

    python benchmarks/gpu.py [--shape 4b 8b] [--lengths 8192 16384 32768 65536] [--json data/benchmarks/gpu.json]
    python benchmarks/gpu.py --device cpu --shape tiny --lengths 256 512 --turn-tokens 64 --json gpu-on-cpu.json

A randomly initialised model of exactly the shape of Qwen3-4B or Qwen3-8B, its linear layers packed to NF4
(bitsandbytes), LoRA of rank 32 on each, makes whole optimiser steps (loss of dagger_nb.training, gradient
checkpointing of every layer, head in pieces, AdamW) on one random trajectory of about the given length. Forms:

    tree                  the trajectory with all its labels, as dagger_nb trains it
    plain trajectory      the executed actions as their own labels: no branches
    one sequence a label  each label behind its own prefix. Only --singles labels are trained, the middle ones of as
                          many equal parts of the trajectory, and their time is scaled to the number of labels

each with the attention kernels of the device (training.attention), and the first two also on the base as it is,
unpacked ("full": bf16 on a GPU), which is plain LoRA. Each case is warmed up once, which also compiles, then
repeated for --seconds, at least twice; the median counts. A GPU is timed by its events, a CPU by CPU seconds.

Operations of a step, with T tokens, P predictions, N weights of the base's linear layers, n of the adapter, L layers
of H heads of D, hidden size C, vocabulary V, and S pairs of a token and what it may see (the sum of depth + 1):

                 model         executed
    base         4 N T         6 N T         forward, gradient of the input; forward again by checkpointing. The base is
                                             frozen: its weights have no gradient (or it would be 6 and 8)
    adapter      6 n T         8 n T         the same, and the gradient of the weights
    attention    12 H D L S    18 H D L S    forward 4, backward 8; forward again 4, scores again in the backward 2
    head         4 V C P       6 V C P       as the base; again only where it is computed in pieces

MFU = model operations / seconds / peak, HFU = executed operations / seconds / peak. Only visible pairs count, not
the masked rest of a block that a kernel computes too; padding, unpacking NF4, norms and the optimiser count nothing:
both are lower bounds. The peak is the datasheet's dense bf16 rate where it is known, else the rate of a large
matrix product measured in the same run (always reported).

Rows are written as soon as they are known. Run again with the same --json, what is there is kept and the rest is
measured; running out of memory is a result. Peak memory includes model and optimiser.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from meter import Meter, environment, matmul_tflops
from peft import PeftModel
from peft.helpers import disable_input_dtype_casting
from synthetic import MODELS, PLAIN, SINGLE, TREE, build, operations, rows_of, shape_named, trajectory

from dagger_nb.training.attention import ATTENTIONS, choose
from dagger_nb.training.loss import summed_loss
from dagger_nb.training.mask import Row

DATASHEET = {"H200": 989.0, "H100 80GB HBM3": 989.0, "A100": 312.0}  # dense bf16 TFLOP/s, by a part of the name
RESULTS = Path(__file__).resolve().parents[1] / "data" / "benchmarks" / "gpu.json"


@dataclass(frozen=True, slots=True)
class Case:
    """What one row of the results measures."""

    shape: str
    base: str  # nf4, or full: bf16 on a GPU, fp32 on a CPU
    length: int
    form: str
    attention: str


def cases(shape: str, base: str, length: int, device: torch.device) -> Iterator[Case]:
    """The forms of one trajectory, the device's own attention first; a sequence of its own has no branches."""
    names = {implementation: name for name, implementation in ATTENTIONS.items()}
    own = names[choose("auto", device)]
    for attention in dict.fromkeys([own, "tree"]):
        if base == "nf4" or attention == own:
            yield Case(shape, base, length, TREE, attention)
            yield Case(shape, base, length, PLAIN, attention)
    if base == "nf4":
        yield Case(shape, base, length, SINGLE, "tree")


def optimiser_step(model: PeftModel, optimiser: torch.optim.Optimizer, rows: Sequence[Row], head_rows: int) -> None:
    for row in rows:
        (summed_loss(model.get_base_model(), row, head_rows=head_rows) / len(row.target_P)).backward()
    torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)


def measure(case: Case, model: PeftModel, meter: Meter, options: argparse.Namespace, peak: float) -> dict[str, Any]:
    """One row of results: speeds, use of the peak rate (TFLOP/s), memory."""
    shape = shape_named(case.shape)
    example = trajectory(case.length, options.turn_tokens, options.lessons, shape.vocabulary, case.length)
    rows, times = rows_of(case.form, example, options.singles)
    model.get_base_model().set_attn_implementation(ATTENTIONS[case.attention])
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-6)
    meter.reset()
    optimiser_step(model, optimiser, rows, options.head_rows)  # warm up: compile, and run out of memory if at all
    meter.reset()
    runs = meter.repeat(lambda: optimiser_step(model, optimiser, rows, options.head_rows), options.seconds)
    seconds = times * statistics.median(runs)
    parts = operations(shape, options.rank, rows, options.head_rows)
    model_total, executed_total = (times * sum(part[side] for part in parts.values()) for side in (0, 1))
    tokens = round(times * sum(row.tokens for row in rows))
    return {
        "labels": len(example.targets),
        "lessons": example.lessons,
        "tokens": tokens,
        "predictions": round(times * sum(len(row.target_P) for row in rows)),
        "seconds": seconds,
        "runs": [round(run, 6) for run in runs],
        "scaled": times,
        "tokens_per_s": tokens / seconds,
        "labels_per_s": len(example.targets) / seconds,
        "tflop": {name: [times * value / 1e12 for value in part] for name, part in parts.items()},
        "mfu": model_total / seconds / peak / 1e12,
        "hfu": executed_total / seconds / peak / 1e12,
        **meter.memory(),
    }


def attempt(run: Callable[[], dict[str, Any]], model: PeftModel) -> dict[str, Any]:
    """The row, or why there is none; an error must not cost the rows after it."""
    try:
        return run()
    except RuntimeError as error:
        reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
        found = {"failed": reason, "out_of_memory": isinstance(error, torch.OutOfMemoryError)}
    model.zero_grad(set_to_none=True)  # what the failed step held is free once its error is gone
    gc.collect()
    return found


# --- the report -------------------------------------------------------------------------------------------


def ratios(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each shape, length and attention: the tree's time beside the plain trajectory's, and so on."""
    seconds = {
        (row["shape"], row["length"], row["base"], row["form"], row["attention"]): row.get("seconds") for row in rows
    }

    def over(top: tuple[Any, ...], bottom: tuple[Any, ...]) -> float | None:
        return seconds[top] / seconds[bottom] if seconds.get(top) and seconds.get(bottom) else None

    found = []
    for shape, length, attention in dict.fromkeys((row["shape"], row["length"], row["attention"]) for row in rows):
        tree = (shape, length, "nf4", TREE, attention)
        found.append(
            {
                "shape": shape,
                "length": length,
                "attention": attention,
                "tree seconds / plain trajectory": over(tree, (shape, length, "nf4", PLAIN, attention)),
                "one sequence a label seconds / tree": over((shape, length, "nf4", SINGLE, "tree"), tree),
                "NF4 speed / full base": over((shape, length, "full", TREE, attention), tree),
            }
        )
    return found


def line(row: dict[str, Any]) -> str:
    name = f"{row['shape']:>5} {row['base']:<5}{row['length']:>7} {row['form']:<21}{row['attention']:<6}"
    if "failed" in row:
        return name + ("out of memory" if row["out_of_memory"] else row["failed"])
    memory = "" if row["peak_gib"] is None else f"{row['peak_gib']:8.2f} GiB"
    return name + (
        f"{row['seconds']:10.3f} s{row['tokens_per_s']:10.0f} tokens/s{row['labels_per_s']:9.2f} labels/s"
        f"  MFU {row['mfu']:5.1%}  HFU {row['hfu']:5.1%}{memory}"
    )


class Report:
    """The JSON file: rows of one machine and one set of options, written whole after each new row."""

    def __init__(self, path: Path, header: dict[str, Any], command: str) -> None:
        self._path, self._header = path, header
        self._commands, self.rows = [command], []
        if path.exists():
            before = json.loads(path.read_text())
            if any(before[name] != header[name] for name in ("environment", "options")):
                sys.exit(f"error: {path} holds rows of another machine, version or option; name another --json")
            self._commands = list(dict.fromkeys([*before["commands"], command]))
            self.rows = [row for row in before["rows"] if "failed" not in row or row["out_of_memory"]]

    def has(self, case: Case) -> bool:
        return any(asdict(case).items() <= row.items() for row in self.rows)

    def add(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        whole = {"commands": self._commands, **self._header, "ratios": ratios(self.rows), "rows": self.rows}
        partial = self._path.with_suffix(".partial")
        partial.write_text(json.dumps(whole, indent=1) + "\n")
        partial.replace(self._path)


def main(arguments: Sequence[str] | None = None) -> None:
    options = read_options(arguments)
    device, meter = torch.device(options.device), Meter(torch.device(options.device))
    torch.set_num_threads(options.threads)
    here, measured = environment(device), matmul_tflops(device, meter)
    known = [rate for name, rate in DATASHEET.items() if name in here["device"]]
    peak = known[0] if known else measured
    fixed = ("turn_tokens", "lessons", "singles", "rank", "head_rows", "seconds")
    header = {
        "environment": here,
        "options": {name: getattr(options, name) for name in fixed},
        "matmul_tflops": measured,
        "peak_tflops": peak,
        "peak_source": "datasheet" if known else "measured matrix product",
    }
    report = Report(options.json, header, " ".join(["python", "benchmarks/gpu.py", *(arguments or sys.argv[1:])]))
    for shape in options.shape:
        for base in ("nf4", "full"):
            wanted = [case for length in options.lengths for case in cases(shape, base, length, device)]
            run_cases([case for case in wanted if not report.has(case)], device, meter, options, report, peak)
    for row in ratios(report.rows):
        print(json.dumps({name: round(value, 3) if isinstance(value, float) else value for name, value in row.items()}))


def run_cases(
    todo: Sequence[Case],
    device: torch.device,
    meter: Meter,
    options: argparse.Namespace,
    report: Report,
    peak: float,
) -> None:
    """All cases of one model; it is built for them and gone afterwards."""
    if not todo:
        return
    shape, packed = shape_named(todo[0].shape), todo[0].base == "nf4"
    longest = max(case.length for case in todo)
    model = build(shape, packed=packed, device=device, rank=options.rank, longest=longest)
    with disable_input_dtype_casting(model, active=device.type == "cuda"):  # as dagger_nb.training.fit does
        for case in todo:
            found = attempt(lambda case=case: measure(case, model, meter, options, peak), model)
            report.add({**asdict(case), **found})
            print(line(report.rows[-1]), flush=True)


def read_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--shape", choices=("tiny", *MODELS), nargs="+", default=list(MODELS))
    parser.add_argument("--lengths", type=int, nargs="+", default=[8192, 16384, 32768, 65536], help="tokens")
    parser.add_argument("--turn-tokens", type=int, default=640, help="of an action and its observation")
    parser.add_argument("--lessons", type=float, default=0.4, help="of the labels; the student's share at beta 0.6")
    parser.add_argument("--singles", type=int, default=3, help="labels trained in sequences of their own")
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--head-rows", type=int, default=2048, help="predictions whose logits exist together")
    parser.add_argument("--seconds", type=float, default=10.0, help="of repeats for each case")
    parser.add_argument("--threads", type=int, default=1, help="on a CPU")
    parser.add_argument("--json", type=Path, help=f"default on a GPU: {RESULTS.relative_to(RESULTS.parents[2])}")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("no CUDA GPU here; the same code runs small with: --device cpu --shape tiny --json FILE")
    if options.device == "cpu" and options.json is None:
        parser.error("name --json FILE: the results kept in the repository are those of a GPU")
    options.json = options.json or RESULTS
    options.json.parent.mkdir(parents=True, exist_ok=True)
    return options


if __name__ == "__main__":
    main()
