"""Fit an adapter to labelled trajectories with transformers' Trainer, our batches and our loss.

Covered: schedules, clipping, checkpoints, and resuming from the last whole one with the same bits as without the
interruption (same machine and thread count). Not covered: which examples are used, and what the adapter is called.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.helpers import disable_input_dtype_casting
from torch.utils.data import SequentialSampler
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from dagger_nb.errors import ConfigError, DataError
from dagger_nb.records import digest
from dagger_nb.settings import OF_MEMORY, TrainingSettings
from dagger_nb.training.attention import choose
from dagger_nb.training.batches import StepData, only_item, plan_steps
from dagger_nb.training.loss import summed_loss
from dagger_nb.training.mask import Row
from dagger_nb.training.tree import Example, TokenTree, build_tree, drop_overlong, refuse_overlong

_SCHEDULES = {"constant": "constant_with_warmup", "linear": "linear", "cosine": "cosine"}
_STATE = "trainer_state.json"  # Trainer writes it last, so a checkpoint that has it is whole
_IDENTITY = "fit.json"


@dataclass(frozen=True, slots=True)
class StepLog:
    """One optimiser step: its loss (nats a token or an action), learning rate, and gradient norm before clipping."""

    step: int
    loss: float
    learning_rate: float
    gradient_norm: float


@dataclass(frozen=True, slots=True)
class FitResult:
    """What was trained on, and how it went. `seconds` are those of this call, which may have resumed."""

    log: tuple[StepLog, ...]
    examples: int
    labels: int
    lessons: int  # labels that differ from what was executed
    dropped: int  # labels longer than the context
    tokens: int  # of all trees, one pass
    predictions: int  # label tokens, one pass
    seconds: float
    threads: int
    device: str


def fit(
    model: PeftModel,
    examples: Sequence[Example],
    settings: TrainingSettings,
    *,
    context: int,
    output_dir: Path,
    seed: int,
    progress: Callable[[str], None] | None = print,
    progress_every_s: float = 10.0,
) -> FitResult:
    """Train the adapter in place, on the device the model is on, and leave the model in evaluation mode.

    The warm-up is cut to a tenth of the steps where it is longer, because its first step moves nothing.

    `seed` decides the order of the examples; nothing else is random. `output_dir` keeps Trainer's checkpoints: call
    again with the same arguments and a model as it was before the first call, and the fit goes on from the last
    one, under other settings `OF_MEMORY` too. Labels that end beyond `context` tokens are an error, or dropped and
    counted (`overlong`).

    Raises:
        ConfigError: nothing to train on, a setting that cannot work, too little memory on the GPU, or a loss that
            is no number.
        DataError: a label is longer than the context, or `output_dir` holds another fit.
    """
    attention = choose(settings.attention, model.device)
    kept, dropped = _within_context(examples, context, settings.overlong)
    trees = [build_tree(example) for example in kept]
    data = _step_data(trees, settings, seed)
    _claim(output_dir, _identity(model, data, settings, seed))
    reporter = _Progress(progress, progress_every_s) if progress else None
    started = time.perf_counter()
    # Where autocast chooses the types, peft's own casts to the adapter's fp32 would only take memory.
    with _attention(model, attention), disable_input_dtype_casting(model, active=model.device.type == "cuda"):
        log = _train(model, data, settings, output_dir, seed, reporter)
    model.eval()
    return FitResult(
        log=log,
        examples=len(kept),
        labels=sum(tree.actions for tree in trees),
        lessons=sum(example.lessons for example in kept),
        dropped=dropped,
        tokens=sum(tree.tokens for tree in trees),
        predictions=sum(len(tree.target_P) for tree in trees),
        seconds=time.perf_counter() - started,
        threads=torch.get_num_threads(),
        device=str(model.device),
    )


def _within_context(examples: Sequence[Example], context: int, overlong: str) -> tuple[list[Example], int]:
    """The examples that have something to teach, and how many labels were dropped."""
    if overlong == "error":
        for example in examples:
            refuse_overlong(example, context)
    pairs = [drop_overlong(example, context) for example in examples]
    kept = [example for example, _ in pairs if any(target.weight for target in example.targets)]
    if not kept:
        raise ConfigError(f"none of {len(examples)} examples has a label to train on; collect or label more episodes")
    return kept, sum(dropped for _, dropped in pairs)


def _step_data(trees: list[TokenTree], settings: TrainingSettings, seed: int) -> StepData:
    steps = plan_steps(
        [tree.tokens for tree in trees],
        passes=settings.passes,
        batch_tokens=settings.batch_tokens,
        row_tokens=settings.row_tokens,
        longest_first=settings.longest_first,
        seed=seed,
    )
    return StepData(trees, steps, row_tokens=settings.row_tokens, normalisation=settings.normalisation)


def _train(
    model: PeftModel,
    data: StepData,
    settings: TrainingSettings,
    output_dir: Path,
    seed: int,
    reporter: _Progress | None,
) -> tuple[StepLog, ...]:
    trainer = _TreeTrainer(
        model=model,
        args=_arguments(settings, output_dir, seed, len(data), model.device),
        train_dataset=data,
        data_collator=only_item,
        head_rows=settings.head_rows,
    )
    trainer.remove_callback(PrinterCallback)
    if reporter is not None:
        trainer.add_callback(reporter)
    trainer.train(resume_from_checkpoint=_last_whole_checkpoint(output_dir))
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    return tuple(StepLog(row["step"], row["loss"], row["learning_rate"], row["grad_norm"]) for row in entries)


def _arguments(
    settings: TrainingSettings, output_dir: Path, seed: int, steps: int, device: torch.device
) -> TrainingArguments:
    """All passes are one Trainer epoch, laid out by plan_steps; a Trainer batch is one optimiser step."""
    arguments = TrainingArguments(
        output_dir=str(output_dir),
        num_train_epochs=1,
        per_device_train_batch_size=1,
        learning_rate=settings.learning_rate,
        lr_scheduler_type=_SCHEDULES[settings.schedule],
        warmup_steps=min(settings.warmup_steps, steps // 10),
        max_grad_norm=settings.clip,
        optim="adamw_torch",
        weight_decay=0.0,
        gradient_checkpointing=settings.checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        save_steps=settings.save_steps,
        save_total_limit=2,
        logging_steps=1,
        logging_nan_inf_filter=False,
        disable_tqdm=True,
        report_to="none",
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        use_cpu=device.type == "cpu",
        seed=seed,
    )
    arguments._n_gpu = min(1, arguments.n_gpu)  # the student is on the first; a Trainer would feed all that it sees
    return arguments


class _TreeTrainer(Trainer):
    """Trainer whose batch is one optimiser step of packed rows, in the order of the data set."""

    def __init__(self, *, head_rows: int, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._head_rows = head_rows

    def _get_train_sampler(self, train_dataset: StepData | None = None) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)

    def training_step(
        self, model: torch.nn.Module, inputs: dict[str, Any], num_items_in_batch: int | None = None
    ) -> torch.Tensor:
        """Loss of the step; gradients are added up row by row, so that memory holds one row at a time."""
        model.train()
        base = self.accelerator.unwrap_model(model).get_base_model()
        total = torch.zeros((), device=self.args.device)
        for row in inputs["rows"]:
            with _memory_explained(row):
                loss = summed_loss(base, row, head_rows=self._head_rows) / inputs["divisor"]
                self.accelerator.backward(loss)
            total += loss.detach()
        if not torch.isfinite(total):
            raise ConfigError(
                f"the loss is {total.item()} at step {self.state.global_step + 1}; "
                "lower training.learning_rate or training.clip"
            )
        return total

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        return 0  # Trainer's estimate knows batches of padded sequences only


@contextmanager
def _memory_explained(row: Row) -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise ConfigError(
            f"the GPU has too little memory for a row of {row.tokens} tokens and {len(row.target_P)} predictions; "
            "set training.checkpointing or lower training.head_rows, and give the same command again: the fit goes on "
            "(with lower training.row_tokens, too, where no checkpoint is there yet)"
        ) from error


class _Progress(TrainerCallback):
    """A plain line every few seconds."""

    def __init__(self, say: Callable[[str], None], every_s: float) -> None:
        self._say, self._every_s = say, every_s
        self._first, self._start, self._last = 0, 0.0, 0.0

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._first, self._start = state.global_step, time.monotonic()
        self._last = self._start
        if state.global_step:
            self._say(f"training goes on after step {state.global_step} of {state.max_steps}")

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, float], **_: Any
    ) -> None:
        now = time.monotonic()
        if "loss" not in logs or now - self._last < self._every_s:
            return
        self._last = now
        done = state.global_step - self._first
        left = (now - self._start) / done * (state.max_steps - state.global_step)
        self._say(
            f"training: step {state.global_step} of {state.max_steps}, loss {logs['loss']:.3f}, {left:.0f} s left"
        )


@contextmanager
def _attention(model: PeftModel, name: str) -> Iterator[None]:
    """The model with another attention implementation, for as long as it trains."""
    base = model.get_base_model()
    before = base.config._attn_implementation
    base.set_attn_implementation(name)
    try:
        yield
    finally:
        base.set_attn_implementation(before)


def _identity(model: PeftModel, data: StepData, settings: TrainingSettings, seed: int) -> str:
    """What a checkpoint must agree with to be gone on from: data, order, settings, seed, the adapter before the fit."""
    content = hashlib.sha256(repr(data.steps).encode())
    for tree in data.trees:
        for array in (tree.ids_T, tree.leave_T, tree.at_P, tree.target_P, tree.weight_P):
            content.update(array.tobytes())
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            content.update(name.encode() + parameter.detach().float().cpu().numpy().tobytes())
    decisive = {name: value for name, value in dataclasses.asdict(settings).items() if name not in OF_MEMORY}
    return digest([seed, content.hexdigest(), decisive])


def _claim(output_dir: Path, identity: str) -> None:
    """Mark the folder as this fit's; refuse one with a checkpoint of another."""
    output_dir.mkdir(parents=True, exist_ok=True)
    file = output_dir / _IDENTITY
    text = json.dumps({"identity": identity}) + "\n"
    if not file.exists() or _last_whole_checkpoint(output_dir) is None:
        partial = file.with_suffix(".partial")
        partial.write_text(text)
        partial.replace(file)
    elif file.read_text() != text:
        raise DataError(
            f"{output_dir} holds checkpoints of another fit (data, order, settings, seed or adapter); remove it"
        )


def _last_whole_checkpoint(output_dir: Path) -> str | None:
    """The newest checkpoint that was written to its end; torn ones are removed."""
    folders = sorted(output_dir.glob("checkpoint-*"), key=lambda folder: int(folder.name.partition("-")[2]))
    for folder in reversed(folders):
        try:
            json.loads((folder / _STATE).read_text())
            return str(folder)
        except (FileNotFoundError, json.JSONDecodeError):
            shutil.rmtree(folder)
    return None
