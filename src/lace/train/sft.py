"""Supervised training on lattices with `transformers.Trainer`: one example is one lattice, never a row of it.

Accumulation, mixed precision, resuming and FSDP are the library's. What is ours is the collator's batch, whose thread
layout (`steps`, `thread_ids`, `lattice_rows`) reaches the grafted layers as plain forward arguments.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import PreTrainedModel, PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from lace.data.assemble import AssembledLattice
from lace.data.collate import IGNORED, LatticeCollator
from lace.lattice.observe import LayerObservation, lattice_metrics, observe_lattice
from lace.train import run_log
from lace.train.optimizer import MuonAdamW

OptimizerName = Literal["adamw", "muon", "adafactor"]


class _JsonlLog(TrainerCallback):
    """Appends every logged line of metrics to a file, the record that plots and tables are made from. A resumed run
    writes the steps after its checkpoint anew."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            run_log.forget_after(self.path, state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if logs and state.is_world_process_zero:
            run_log.append(self.path, {"step": state.global_step, **logs})


class _StopAfter(TrainerCallback):
    """Ends a run before its schedule does."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop = control.should_training_stop or state.global_step >= self.step


def lattice_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    choice_places: torch.Tensor,
    choice_probabilities: torch.Tensor,
    count: torch.Tensor | int,
    choice_weight: float = 1.0,
) -> torch.Tensor:
    """Cross entropy of the next token, per learned token: against the token that was written, or, where the teacher
    drew it, against the distribution that it was drawn from.

    Args:
        logits: (R, T, V), of any floating-point dtype.
        labels: (R, T), `IGNORED` where nothing is learned.
        choice_places: (C, 2) row and column of the drawn tokens.
        choice_probabilities: (C, V).
        count: learned tokens to average over, those of other micro-batches included.
        choice_weight: factor of the drawn tokens. They carry what the threads are to coordinate, but among 20 equal
            ideas the whole gain from avoiding those of the others is a few hundredths of a nat per token.
    """
    row_C, column_C = choice_places.unbind(1)
    labels = labels.index_put((row_C, column_C), torch.tensor(IGNORED, device=labels.device))
    written = nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=IGNORED, reduction="sum"
    )
    drawn = nn.functional.cross_entropy(
        logits[row_C, column_C - 1].float(), choice_probabilities.to(logits.device), reduction="sum"
    )
    return (written + choice_weight * drawn) / count


class LatticeTrainer(Trainer):
    """A trainer whose loss is `lattice_loss`, and which knows one optimizer more."""

    def __init__(self, *args: Any, choice_weight: float = 1.0, muon: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.choice_weight, self.muon = choice_weight, muon
        self.observed: dict[int, list[LayerObservation]] = {}
        """What the lattices did in the forward passes of a step that will be logged."""

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        if self.muon and self.optimizer is None:
            assert isinstance(self.model, nn.Module)
            args = self.args
            betas = (args.adam_beta1, args.adam_beta2)
            self.optimizer = MuonAdamW(self.model, lr=args.learning_rate, weight_decay=args.weight_decay, betas=betas)
        return super().create_optimizer(model)

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        for_loss = {name: inputs.pop(name) for name in ("labels", "choice_places", "choice_probabilities")}
        with self._observation(model):
            outputs = model(**inputs, use_cache=False)
        count = num_items_in_batch if num_items_in_batch is not None else (for_loss["labels"][:, 1:] != IGNORED).sum()
        loss = lattice_loss(outputs.logits, **for_loss, count=count, choice_weight=self.choice_weight)
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes  # the count is of all processes, whose gradients are averaged
        return (loss, outputs) if return_outputs else loss

    @contextmanager
    def _observation(self, model: Any) -> Iterator[None]:
        """Observes the lattices during the step that the next line of the log is written after."""
        if not model.training or (self.state.global_step + 1) % self.state.logging_steps:
            yield
            return
        with observe_lattice(self.accelerator.unwrap_model(model)) as found:
            yield
        for layer, passes in found.items():
            self.observed.setdefault(layer, []).extend(passes)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds `gate/LAYER` and `cross_thread_attention/LAYER` of the last step, over its whole batch."""
        if "loss" in logs:
            logs = {**logs, **lattice_metrics(self.observed, self._sum_of_processes)}
            self.observed = {}
        super().log(logs, start_time)

    def _sum_of_processes(self, values: torch.Tensor) -> torch.Tensor:
        return cast(torch.Tensor, self.accelerator.reduce(values.to(self.args.device), "sum"))


def train_lattices(
    model: PreTrainedModel,
    dataset: Dataset[AssembledLattice],
    pad_token_id: int,
    output: str | Path,
    *,
    steps: int,
    stop_after: int | None = None,
    learning_rate: float,
    lattices_per_step: int = 8,
    accumulate: int = 1,
    choice_weight: float = 1.0,
    warmup_steps: int = 100,
    weight_decay: float = 0.05,
    optimizer: OptimizerName = "adamw",
    seed: int = 0,
    bf16: bool = False,
    data_workers: int = 0,
    save_every: int = 500,
    log_every: int = 50,
    report_to: str | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    arguments: Mapping[str, Any] | None = None,
) -> Trainer:
    """Trains all parameters that require gradients; continues from the last checkpoint in `output`, if there is one.

    Args:
        model: grafted for lattices that read each other, plain for isolated threads.
        dataset: one item is one assembled lattice; taken in order, so its order must already be random.
        pad_token_id: fills short rows.
        output: folder of checkpoints and of `log.jsonl`.
        steps: optimiser steps of the whole learning-rate schedule.
        stop_after: end earlier, after this many of them.
        lattices_per_step: lattices of one optimiser step, over all processes and their `accumulate` micro-batches.
        choice_weight: see `lattice_loss`.
        optimizer: `muon` takes AdamW for what is no matrix, see `MuonAdamW`; `adafactor` keeps next to no state.
        data_workers: processes that prepare batches; what is in them does not depend on it.
        report_to: a tracker of transformers besides `log.jsonl`, e.g. tensorboard or trackio.
        callbacks: further ones of the trainer.
        arguments: further fields of `transformers.TrainingArguments`, e.g. for FSDP.

    Returns:
        The trainer, after training.

    Raises:
        ValueError: if the lattices of a step cannot be split evenly over processes and micro-batches, or the tracker is
            not installed.
    """
    processes = int(os.environ.get("WORLD_SIZE", "1"))  # as every launcher sets it
    if lattices_per_step % (accumulate * processes):
        among = f" by {processes} processes" if processes > 1 else ""
        raise ValueError(
            f"{lattices_per_step} lattices a step cannot be accumulated in {accumulate} equal parts{among}"
        )
    run_log.check_tracker(report_to)
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    settings = TrainingArguments(
        output_dir=str(output),
        max_steps=steps,
        per_device_train_batch_size=lattices_per_step // (accumulate * processes),
        gradient_accumulation_steps=accumulate,
        learning_rate=learning_rate,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": 0.05},
        warmup_steps=warmup_steps,
        weight_decay=weight_decay,
        optim="adafactor" if optimizer == "adafactor" else "adamw_torch",
        adam_beta2=0.98,
        max_grad_norm=1.0,
        bf16=bf16,
        use_cpu=not torch.cuda.is_available(),
        seed=seed,
        save_steps=save_every,
        save_total_limit=2,
        logging_steps=log_every,
        report_to=report_to or "none",
        disable_tqdm=True,
        remove_unused_columns=False,
        train_sampling_strategy="sequential",
        dataloader_pin_memory=torch.cuda.is_available(),
        dataloader_num_workers=data_workers,
        **dict(arguments or {}),
    )
    if settings.n_gpu > 1:
        raise ValueError("several GPUs in one process would tear lattices apart; start one process each with torchrun")
    trainer = LatticeTrainer(
        model=model,
        args=settings,
        choice_weight=choice_weight,
        muon=optimizer == "muon",
        train_dataset=dataset,
        data_collator=LatticeCollator(pad_token_id, model.config.get_text_config().vocab_size),
        callbacks=[_JsonlLog(output / "log.jsonl"), _StopAfter(stop_after or steps), *callbacks],
    )
    trainer.remove_callback(PrinterCallback)  # what it prints is in the log
    saved = run_log.checkpoints(output, last_written="trainer_state.json")
    trainer.train(resume_from_checkpoint=str(saved[-1]) if saved else None)
    return trainer
