"""The recipe of the embedded Countdown models: `python -m lace.train.countdown STAGE --out DIR [--init DIR]`.

Stages, in order (runs/countdown.sh runs them all):

- `base`: a small Qwen3 from scratch on drills and isolated traces.
- `isolated`: the base goes on with drills and isolated traces; the baseline of every comparison. It is saved with an
  untrained lattice, which adds exactly nothing, but carries the labels and the opening of the threads.
- `lattice`: the base is grafted and goes on with drills and coordinated traces, for as many steps on the same puzzles.
"""

from __future__ import annotations

import argparse
import math
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase, Qwen3Config, Qwen3ForCausalLM, set_seed

from lace.data.puzzle_mixture import PuzzleLattices, PuzzleMixture
from lace.data.vocabulary import LARGEST_NUMBER, build_tokenizer
from lace.lattice.checkpoint import load, save
from lace.lattice.config import LatticeConfig
from lace.lattice.graft import graft, lattice_layers, lattice_off
from lace.train.sft import train_lattices

LATTICE = LatticeConfig(
    layers=(2, 3, 4, 5), low_dim=64, num_heads=4, time_dims=24, thread_dims=8, opening="Thread {label}:"
)


def number_features(numbers: torch.Tensor) -> torch.Tensor:
    """Sine and cosine of each number at several periods, (len(numbers), 24).

    Networks that learn to add represent numbers like this in the end; starting there saves most of the time.
    """
    periods = torch.tensor([2.0, 3.0, 5.0, 7.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0])
    angles = 2 * math.pi * numbers[:, None].float() / periods
    return torch.cat((angles.cos(), angles.sin()), dim=1)


def new_base_model(tokenizer: PreTrainedTokenizerBase) -> Qwen3ForCausalLM:
    """A random Qwen3 of 1.3 million parameters whose number embeddings start from `number_features`."""
    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=128,
            num_hidden_layers=6,
            intermediate_size=384,
            num_attention_heads=4,
            num_key_value_heads=4,
            head_dim=32,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    numbers = torch.arange(LARGEST_NUMBER + 1)
    features = number_features(numbers) * math.sqrt(2) * model.config.initializer_range
    embeddings: Any = model.get_input_embeddings()
    with torch.no_grad():
        ids = tokenizer.convert_tokens_to_ids([str(int(n)) for n in numbers])
        embeddings.weight[ids, : features.shape[1]] = features
    return model


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=("base", "isolated", "lattice"))
    parser.add_argument("--out", type=Path, required=True, help="folder of the stage; a run found there is resumed")
    parser.add_argument("--init", type=Path, help="model folder to start from (isolated, lattice), grafted or not")
    parser.add_argument("--steps", type=int, required=True, help="optimiser steps of the learning-rate schedule")
    parser.add_argument("--stop-after", type=int, help="end earlier than the learning-rate schedule does")
    parser.add_argument("--lattices", type=int, default=8, help="lattices per step")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--equations", type=float, default=0.0, help="share of batches with bare equations")
    parser.add_argument("--lucky", type=float, default=0.0, help="share of batches with searches of many solutions")
    parser.add_argument("--idea-drills", type=float, default=0.0, help="share of batches that only name ideas")
    parser.add_argument(
        "--visibility", choices=("strict", "causal"), default=LATTICE.visibility, help="of a new lattice"
    )
    parser.add_argument("--four-numbers", type=float, default=0.25, help="share of batches with four numbers")
    parser.add_argument("--choice-weight", type=float, default=1.0, help="weight of the choice of ideas in the loss")
    parser.add_argument("--seed", type=int, default=0, help="of the weights and of the stream of puzzles")
    options = parser.parse_args(argv)
    if (options.init is None) != (options.stage == "base"):
        parser.error("--init is needed for the stages isolated and lattice, and only there")

    set_seed(options.seed)
    tokenizer = build_tokenizer()
    model: Any
    model = new_base_model(tokenizer) if options.stage == "base" else load(options.init, dtype=torch.float32).model
    config = LatticeConfig.from_dict({**LATTICE.to_dict(), "visibility": options.visibility})
    config = getattr(model, "lattice_config", config)
    if options.stage == "lattice" and not lattice_layers(model):
        graft(model, config)
    mixture = PuzzleMixture(
        coordinated=options.stage == "lattice",
        visibility=config.visibility,
        max_label=config.max_thread_id,
        equations=options.equations,
        lucky=options.lucky,
        idea_drills=options.idea_drills,
        four_numbers=options.four_numbers,
        group=options.lattices,
        seed=options.seed + (0 if options.stage == "base" else 1),
    )
    dataset = PuzzleLattices(mixture, tokenizer, options.steps * options.lattices)
    assert isinstance(tokenizer.pad_token_id, int)
    with nullcontext() if options.stage == "lattice" else lattice_off(model):
        train_lattices(
            model,
            dataset,
            tokenizer.pad_token_id,
            options.out / "checkpoints",
            steps=options.steps,
            stop_after=options.stop_after,
            learning_rate=options.learning_rate,
            choice_weight=options.choice_weight,
            lattices_per_step=options.lattices,
            seed=options.seed,
        )
    if options.stage == "base":
        model.save_pretrained(options.out)
    else:
        if not lattice_layers(model):
            graft(model, config)  # untrained, so it adds exactly nothing; it tells the engine how threads open
        save(model, options.out, whole=True)
    tokenizer.save_pretrained(options.out)


if __name__ == "__main__":
    main()
