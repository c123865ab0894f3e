"""Two processes train as one does: the same metrics and the same final parameters, for sft and for grpo, there with
threads that read each other and with independent ones.

The quick tests fork two processes that share gradients (DDP) over gloo. The slow ones start this very file with
`accelerate launch`, with DDP and with FSDP2, kill a run in between, and resume it.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

if __name__ == "__main__":  # started by accelerate, without pytest's settings
    os.environ["HF_HUB_OFFLINE"] = "1"
    sys.path.insert(0, str(Path(__file__).parents[1]))

import pytest
import torch
from accelerate import DistributedType, PartialState, debug_launcher
from accelerate.state import AcceleratorState
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from lace.data.assemble import AssembledLattice
from lace.data.vocabulary import build_tokenizer
from lace.engine.result import LatticeResult
from lace.lattice.graft import graft
from lace.train import grpo
from lace.train.rewards import LatticeReward, lattice_reward
from lace.train.sft import train_lattices
from tiny import SHAPE, tiny_config, wake

STEPS, SAVE_EVERY = 4, 2
STAGES = ("sft", "grpo", "independent")
ALIKE = {"rtol": 1e-5, "atol": 2e-5}
"""Sums over other groups of tokens differ by rounding, which Adam enlarges where gradients are near zero; the
parameters themselves move by up to 3e-3."""


def _model() -> PreTrainedModel:
    torch.manual_seed(0)
    shape = {**SHAPE, "vocab_size": len(build_tokenizer()), "num_hidden_layers": 2, "head_dim": 8}
    return wake(graft(Qwen3ForCausalLM(Qwen3Config(**shape, tie_word_embeddings=True)), tiny_config()))


def _lattice(seed: int) -> AssembledLattice:
    """Lattices and threads of unequal size, so that processes and micro-batches differ in their number of tokens."""
    draw = random.Random(seed)
    ids = [[draw.randrange(3, 60) for _ in range(draw.randint(3, 12))] for _ in range(draw.randint(2, 3))]
    choices = [{1: {3: 0.5, 4: 0.5}} for _ in ids]
    return AssembledLattice([5] * 4, draw.sample(range(1, 30), len(ids)), ids, [[True] * len(x) for x in ids], choices)


class _Questions:
    def __init__(self, deadly: int | None) -> None:
        self.deadly = deadly

    def __getitem__(self, index: int) -> grpo.Question:
        if index == self.deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        return grpo.Question(["Use 3, 7 and 12 to make 33", "Use 2 and 5 to make 7"][index % 2], lambda answer: False)


class _Lattices(torch.utils.data.Dataset):
    def __init__(self, deadly: int | None) -> None:
        self.deadly = deadly

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> AssembledLattice:
        if index == self.deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        return _lattice(index)


def _even(result: LatticeResult, *arguments: object) -> LatticeReward:
    """A reward that a random model earns now and then: the share of even token ids."""
    shares = [sum(n % 2 == 0 for n in thread.token_ids) / len(thread.token_ids) for thread in result.threads]
    return replace(lattice_reward(result, lambda answer: False), total=sum(shares) / len(shares), threads=tuple(shares))


def _train(stage: str, output: Path, deadly: int | None = None) -> PreTrainedModel:
    """A few steps of a stage. The process that reads lattice or question number `deadly` is killed."""
    model, tokenizer = _model(), build_tokenizer()
    if stage == "sft":
        train_lattices(
            model,
            _Lattices(deadly),
            tokenizer.pad_token_id,
            output,
            steps=STEPS,
            lattices_per_step=4,
            accumulate=2,
            learning_rate=1e-3,
            warmup_steps=1,
            log_every=1,
            save_every=SAVE_EVERY,
        )
        return model
    settings = grpo.GRPOSettings(
        steps=STEPS,
        strategy="independent" if stage == "independent" else "lace",
        threads=(3,),
        max_tokens=8,
        questions_per_step=2,
        lattices_per_question=4,
        lattices_per_forward=3,
        learning_rate=1e-3,
        warmup_steps=1,
        save_every=SAVE_EVERY,
        rehearsal_lattices=4,
        rehearsal_max_tokens=8,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grpo, "lattice_reward", _even)
        patch.setattr(grpo, "independent_reward", _even)
        grpo.LatticeGRPO(model, tokenizer, _Questions(deadly), settings, output, _model(), _Questions(None)).train()
    return model


def _one_of_two(stage: str, output: Path, sharded: bool = False, deadly: int | None = None) -> None:
    """What each of two processes does."""
    assert torch.distributed.is_initialized() or "LOCAL_RANK" in os.environ
    model = _train(stage, output, deadly)
    assert PartialState().num_processes == 2
    assert sharded == all(isinstance(p, DTensor) for p in model.parameters())
    whole = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if PartialState().is_main_process:
        torch.save(whole, output / "final.pt")


def _forked(stage: str, output: Path) -> None:
    AcceleratorState._reset_state(reset_partial_state=True)  # that of the tests before
    _one_of_two(stage, output)


def _launched() -> None:
    """`accelerate launch`ed: STAGE OUTPUT ddp|fsdp2 [DEADLY]."""
    torch.set_num_threads(1)
    stage, output, kind, *deadly = sys.argv[1:]
    if kind == "fsdp2":
        # accelerate shards on accelerators only; this one claims to be one. All else is as it would be there.
        os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
        PartialState._prepare_backend = lambda *arguments, **more: ("gloo", DistributedType.MULTI_GPU)
        torch.distributed.init_process_group("gloo")
    _one_of_two(stage, Path(output), kind == "fsdp2", int(deadly[0]) if deadly else None)


def _log(output: Path) -> list[dict[str, float]]:
    lines = map(json.loads, (output / "log.jsonl").read_text().splitlines())
    return [line for line in lines if "grad_norm" in line]


def _assert_same_run(stage: str, alone: Path, two: Path) -> None:
    """A run of one process, made here, and that of two, whose model was saved."""
    expected = _train(stage, alone)
    one, other = _log(alone), _log(two)
    assert [line["step"] for line in one] == [line["step"] for line in other] == list(range(1, STEPS + 1))
    for line, same in zip(one, other, strict=True):
        for name in line.keys() & {
            "loss",
            "grad_norm",
            "tokens",
            "rehearsal_kl",
            "reward",
            "diversity",
            "clipped",
            "learning_rate",
        }:
            assert same[name] == pytest.approx(line[name], rel=1e-4, abs=1e-6), name
    start = dict(_model().named_parameters())
    found = torch.load(two / "final.pt")
    for name, parameter in expected.named_parameters():
        assert (parameter - start[name]).abs().max() > 1e-4 or not parameter.requires_grad, name
        torch.testing.assert_close(found[name], parameter, **ALIKE, msg=name)


@pytest.mark.parametrize("stage", STAGES)
def test_two_processes_equal_one(stage: str, tmp_path: Path) -> None:
    debug_launcher(_forked, (stage, tmp_path / "two"), num_processes=2)
    _assert_same_run(stage, tmp_path / "one", tmp_path / "two")


def _launch(kind: str, stage: str, output: Path, *deadly: str) -> int:
    """The exit status of one of these stages under `accelerate launch`."""
    how = ["--use_fsdp", "--fsdp_version=2", "--fsdp_auto_wrap_policy=TRANSFORMER_BASED_WRAP"]
    launcher = subprocess.Popen(
        [sys.executable, "-m", "accelerate.commands.launch", "--num_processes=2", "--num_machines=1"]
        + ["--mixed_precision=no", "--dynamo_backend=no", "--main_process_port=0"]
        + (how if kind == "fsdp2" else ["--multi_gpu"])
        + [__file__, stage, str(output), kind, *deadly],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )
    try:
        return launcher.wait(timeout=900)
    finally:
        if launcher.poll() is None:  # it hangs: end the processes that it has started too
            os.killpg(launcher.pid, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
@pytest.mark.parametrize("stage", STAGES[:2])
def test_launched_killed_and_resumed_equals_one(stage: str, kind: str, tmp_path: Path) -> None:
    deadly = {"sft": 4 * 2 + 2, "grpo": 2 * 3 + 1}[stage]  # what one of the two reads after the checkpoint of step 2
    assert _launch(kind, stage, tmp_path / "two", str(deadly)) != 0
    assert (tmp_path / "two" / "checkpoint-2").is_dir()
    assert not (tmp_path / "two" / "final.pt").exists()
    assert _launch(kind, stage, tmp_path / "two") == 0
    _assert_same_run(stage, tmp_path / "one", tmp_path / "two")


if __name__ == "__main__":
    _launched()
