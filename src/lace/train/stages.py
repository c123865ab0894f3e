"""The three stages as runs: a folder with the resolved config, the model and data that it asks for, the training, and
in the end the model in `OUT/model`.

cpt trains the lattice alone, sft all parameters, both on lattices that are given; grpo lets the model sample its own.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
from contextlib import nullcontext
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import FSDPModule
from torch.utils.data import Dataset
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase, set_seed

from lace.data.assemble import AssembledLattice
from lace.data.jsonl import RecordLattices, find_files
from lace.data.puzzle_mixture import PuzzleLattices
from lace.data.vocabulary import build_tokenizer
from lace.lattice.checkpoint import load, load_shape, save
from lace.lattice.config import LatticeConfig
from lace.lattice.graft import graft, lattice_layers, lattice_off, lattice_parameters
from lace.provenance import source_commit
from lace.train import run_log
from lace.train.config import AnyRun, GRPORun, PuzzleData, Stage, SupervisedRun, flat, resolved
from lace.train.cost import Batch, Cost, training_cost
from lace.train.grpo import LatticeGRPO
from lace.train.new_model import ModelShape, new_base_model
from lace.train.progress import RunProgress, TrainerProgress
from lace.train.questions import questions_from
from lace.train.sft import train_lattices
from lace.train.sum_skill import EndAtSkill, wrong_share

RESOLVED_NAME = "resolved.json"
PACKAGES = ("lace-llm", "torch", "transformers", "accelerate", "tokenizers", "safetensors", "numpy", "pydantic")
PROMPT_TOKENS = 256
"""Length that a dry run of grpo takes a prompt to have."""


def is_main_process() -> bool:
    """Whether this is the one process that writes and speaks, under any launcher."""
    return os.environ.get("RANK", "0") == "0"


# --- the folder ------------------------------------------------------------------------------------------------------


def open_run(stage: Stage, config: AnyRun, command: str) -> bool:
    """Makes the folder of a run with its `resolved.json`, or checks that the run found there is the same.

    Returns:
        Whether the run is finished already.

    Raises:
        ValueError: one line, if the folder holds something else, or a run of another config, with the differing keys.
    """
    out = config.run.out
    values = {"stage": stage, **resolved(config)}
    path = out / RESOLVED_NAME
    if not path.exists():
        if out.exists() and any(out.iterdir() if out.is_dir() else [out]):
            raise ValueError(f"{out} exists, but holds no run ({RESOLVED_NAME}); give another run.out")
        out.mkdir(parents=True, exist_ok=True)
        versions = {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}
        about = {"command": command, "commit": source_commit(), "seed": config.run.seed, "versions": versions}
        unfinished = path.with_suffix(".unfinished")
        unfinished.write_text(json.dumps({**about, "config": values}, indent=2) + "\n", encoding="utf-8")
        unfinished.rename(path)
        return False
    before, now = flat(json.loads(path.read_text(encoding="utf-8"))["config"]), flat(values)
    differing = [key for key in sorted(before | now) if before.get(key) != now.get(key) and key != "run.out"]
    if differing:
        told = ", ".join(f"{key} (there {before.get(key)!r}, now {now.get(key)!r})" for key in differing)
        raise ValueError(f"{out} holds a run of another config: {told}; give another run.out")
    return (out / "model").exists()


# --- the model -------------------------------------------------------------------------------------------------------


def build_model(config: AnyRun) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model that a run starts from, grafted if the config says so, and its tokenizer.

    Raises:
        ValueError: one line, if it has no tokenizer, or a lattice other than the config's.
        FileNotFoundError: if there is no such model.
    """
    set_seed(config.run.seed)
    dtype = getattr(torch, config.model.dtype)
    model: Any
    tokenizer: PreTrainedTokenizerBase | None
    if config.model.init == "new":
        tokenizer = build_tokenizer()
        model = new_base_model(tokenizer, config.model.shape).to(dtype)
    else:
        model, tokenizer = load(config.model.init, revision=config.model.revision, dtype=dtype)
        if tokenizer is None:
            raise ValueError(f"{config.model.init} has no tokenizer; save one beside the model")
    _graft(model, config.lattice)
    return model, tokenizer


def build_shape(config: AnyRun) -> PreTrainedModel:
    """The same on the meta device, without weights; `model.shape` is taken at its word where it is given."""
    shape, init, dtype = config.model.shape, config.model.init, getattr(torch, config.model.dtype)
    model: Any
    if init == "new" or shape is not None:
        shape = shape or ModelShape()
        known = {"vocab_size": len(build_tokenizer())} if init == "new" else {}
        if shape.vocab_size is None and not known:
            raise ValueError("model.shape.vocab_size is missing: the shape of a model to be loaded needs all its sizes")
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(shape.to_config(**known), dtype=dtype)
    else:
        model = load_shape(init, revision=config.model.revision).to(dtype)
    _graft(model, config.lattice)
    shaped: PreTrainedModel = model
    return shaped


def _graft(model: PreTrainedModel, wanted: LatticeConfig | None) -> None:
    carried = getattr(model, "lattice_config", None)
    if wanted is None:
        return
    if carried is None:
        graft(model, wanted)
        return
    differing = [f.name for f in fields(LatticeConfig) if getattr(wanted, f.name) != getattr(carried, f.name)]
    if differing:
        told = ", ".join(f"{n} (there {getattr(carried, n)!r}, here {getattr(wanted, n)!r})" for n in differing)
        raise ValueError(f"the model's lattice is not that of the section [lattice]: {told}; leave the section out")


def _freeze_base(model: PreTrainedModel) -> None:
    model.requires_grad_(False)
    for _, parameter in lattice_parameters(model):
        parameter.requires_grad_(True)


def _save(stage: Stage, config: AnyRun, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Writes the model beside its place and moves it there, so that `OUT/model` is there only if it is complete."""
    model = _whole(model)
    if not is_main_process():
        return
    unfinished = config.run.out / "model.unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    if lattice_layers(model):
        save(model, unfinished, whole=stage != "cpt" or config.model.init == "new")
    else:
        model.save_pretrained(unfinished)
    tokenizer.save_pretrained(unfinished)
    unfinished.rename(config.run.out / "model")


def _whole(model: PreTrainedModel) -> PreTrainedModel:
    """The model itself, or, if FSDP2 has spread it over processes, its like on the CPU of the main process; all of them
    must call this."""
    if not any(isinstance(module, FSDPModule) for module in model.modules()):
        return model
    state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    with torch.device("meta"):
        alike: Any = AutoModelForCausalLM.from_config(model.config)
    if lattice_layers(model):
        graft(alike, model.lattice_config)  # type: ignore[arg-type]  # typed as a submodule by torch
        alike.base_fingerprint = model.base_fingerprint
    if is_main_process():
        alike.load_state_dict(state, assign=True)
    whole: PreTrainedModel = alike
    return whole


# --- the stages ------------------------------------------------------------------------------------------------------


def run_stage(stage: Stage, config: AnyRun) -> None:
    """Trains, or goes on, and saves the model; the folder is open already.

    Raises:
        ValueError: one line, for what does not fit together.
    """
    if isinstance(config, GRPORun):
        _run_grpo(config)
    else:
        _run_supervised(stage, config)


def _run_supervised(stage: Stage, config: SupervisedRun) -> None:
    train = config.train
    model, tokenizer = build_model(config)
    _check_supervised(stage, config, model)
    if stage == "cpt":
        _freeze_base(model)
    if train.gradient_checkpointing:  # not reentrant: that wants inputs with gradient, and a frozen base has none
        model.activation_checkpointing_enable({"use_reentrant": False})
    dataset = _dataset(config, tokenizer)
    end = []
    if train.wrong_sums is not None:
        end = [EndAtSkill(tokenizer, train.wrong_sums, config.run.out / "log.jsonl")]
    progress = RunProgress(stage, train.stop_after or train.steps, quiet=not is_main_process())
    with progress, nullcontext() if train.lattice == "on" else lattice_off(model):
        trainer = train_lattices(
            model,
            dataset,
            tokenizer.pad_token_id if isinstance(tokenizer.pad_token_id, int) else 0,  # masked, so any will do
            config.run.out,
            steps=train.steps,
            stop_after=train.stop_after,
            learning_rate=train.learning_rate,
            lattices_per_step=train.lattices_per_step,
            accumulate=train.accumulate,
            choice_weight=train.choice_weight,
            warmup_steps=train.warmup_steps,
            weight_decay=train.weight_decay,
            optimizer=train.optimizer,
            seed=config.run.seed,
            bf16=train.bf16,
            data_workers=train.data_workers,
            save_every=train.save_every,
            log_every=train.log_every,
            report_to=None if train.trackers == "none" else train.trackers,
            callbacks=[TrainerProgress(progress), *end],
            arguments={"fsdp": True} if train.fsdp else None,
        )
        if train.wrong_sums is not None and (wrong := wrong_share(model, tokenizer)) > train.wrong_sums:
            raise ValueError(
                f"{wrong:.1%} of the sums are wrong after {trainer.state.global_step} steps, more than the "
                f"{train.wrong_sums:.1%} of train.wrong_sums: start anew with more train.steps"
            )
    _save(stage, config, trainer.accelerator.unwrap_model(trainer.model), tokenizer)


def _check_supervised(stage: Stage, config: SupervisedRun, model: PreTrainedModel) -> None:
    train, data = config.train, config.data
    carried: LatticeConfig | None = getattr(model, "lattice_config", None)
    if train.wrong_sums is not None and not isinstance(data, PuzzleData):
        raise ValueError("train.wrong_sums needs data of kind puzzles, whose words for sums the model knows")
    if stage == "cpt" and train.lattice == "off":
        raise ValueError("cpt trains the lattice alone, so train.lattice cannot be 'off'")
    if train.lattice == "off":
        return
    if carried is None:
        raise ValueError("the model carries no lattice: add a section [lattice], or set train.lattice to 'off'")
    if carried.visibility == "strict" and data.visibility == "causal":
        raise ValueError("data.visibility 'causal' is a step too early for a lattice whose visibility is 'strict'")
    if isinstance(data, PuzzleData) and data.max_label > carried.max_thread_id:
        raise ValueError(
            f"data.max_label, {data.max_label}, is above the lattice's max_thread_id, {carried.max_thread_id}"
        )


def _dataset(config: SupervisedRun, tokenizer: PreTrainedTokenizerBase) -> Dataset[AssembledLattice]:
    data, size = config.data, config.train.steps * config.train.lattices_per_step
    if isinstance(data, PuzzleData):
        return PuzzleLattices(data, tokenizer, size)
    return RecordLattices(
        find_files(data.path, data.revision),
        tokenizer,
        size,
        visibility=data.visibility,
        max_threads=data.max_threads,
        max_tokens=data.max_tokens,
        seed=data.seed,
    )


def _run_grpo(config: GRPORun) -> None:
    settings = config.grpo
    questions = questions_from(settings.questions, settings.seed)
    rehearsal = None if settings.rehearsal is None else questions_from(settings.rehearsal, settings.seed)
    held = settings.kl_weight or settings.rehearsal_lattices
    reference = build_model(config)[0].eval().requires_grad_(False) if held else None
    model, tokenizer = build_model(config)
    with RunProgress("grpo", settings.steps, quiet=not is_main_process()) as progress:
        trainer = LatticeGRPO(
            model,
            tokenizer,
            questions,
            settings,
            config.run.out,
            reference,
            rehearsal,
            report_to=None if settings.trackers == "none" else settings.trackers,
            on_start=progress.start,
            on_step=progress.tell,
        )
        trainer.train()
    _save("grpo", config, trainer.policy, tokenizer)


# --- the dry run -----------------------------------------------------------------------------------------------------


def dry_run(stage: Stage, config: AnyRun) -> Cost:
    """What a step of the run costs one process, counted on the meta device; no weights are read.

    Raises:
        ValueError: one line, for what does not fit together.
    """
    model = build_shape(config)
    if isinstance(config, GRPORun):
        grpo = config.grpo
        share = max(grpo.questions_per_step * grpo.lattices_per_question, grpo.rehearsal_lattices)
        batch = Batch(
            lattices=min(grpo.lattices_per_forward, share),
            threads=(threads := max(grpo.threads)),
            tokens=PROMPT_TOKENS + max(grpo.max_tokens, grpo.rehearsal_max_tokens if grpo.rehearsal else 0),
            autocast=grpo.bf16,
            checkpointing=grpo.gradient_checkpointing,
            adafactor=grpo.optimizer == "adafactor",
            lattice=grpo.strategy == "lace",
            decoding_rows=max(threads, min(grpo.decode_rows, share * threads)),
        )
        return training_cost(model, batch)
    train, data = config.train, config.data
    _check_supervised(stage, config, model)
    if stage == "cpt":
        _freeze_base(model)
    tokens = _longest_row(config) if isinstance(data, PuzzleData) else data.max_tokens
    batch = Batch(
        lattices=max(1, train.lattices_per_step // (train.accumulate * int(os.environ.get("WORLD_SIZE", "1")))),
        threads=data.max_threads,
        tokens=tokens,
        autocast=train.bf16,
        checkpointing=train.gradient_checkpointing,
        adafactor=train.optimizer == "adafactor",
        lattice=train.lattice == "on",
    )
    return training_cost(model, batch)


def _longest_row(config: SupervisedRun) -> int:
    """Of the first 64 lattices of the stream."""
    lattices = _dataset(config, build_tokenizer())
    rows = [lattices[n] for n in range(min(64, config.train.steps * config.train.lattices_per_step))]
    return max(len(row.prompt_ids) + max(map(len, row.tokens)) for row in rows)


def last_step(stage: Stage, out: Path) -> int:
    """The step that a run would go on from."""
    saved = run_log.checkpoints(out, last_written="" if stage == "grpo" else "trainer_state.json")
    return run_log.step_of(saved[-1]) if saved else 0
