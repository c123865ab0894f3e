"""A small model for data of `lace data`: what runs/student.sh needs besides the commands of `lace`.

python benchmarks/student.py bytes TOKENIZER          # a token for each byte, for a first run of a few questions
python benchmarks/student.py base RUN MODEL           # a tokenizer made from that run's lattices, and a model for it
python benchmarks/student.py ask RUN MODEL --isolated OTHER   # unseen questions: lattice on, off, swapped; its control
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path
from statistics import fmean
from typing import Any, cast

import torch
from figures import provenance, tell
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM, set_seed

from lace.cli.models import load_engine
from lace.data.jsonl import read_records
from lace.data.pipeline.config import ReasoningGymSource
from lace.data.pipeline.item import Question
from lace.data.pipeline.outcomes import read_items
from lace.data.pipeline.outputs import FILE_NAME, PARTS
from lace.data.pipeline.plan import OUTCOMES_NAME
from lace.data.pipeline.sources import read_source
from lace.data.pipeline.stats import read_about
from lace.data.pipeline.verifiers import is_right
from lace.engine.engine import Engine
from lace.engine.result import STRATEGIES, LatticeResult
from lace.engine.sampling import SamplingParams
from lace.engine.selection import majority
from lace.eval.stats import bootstrap_difference, bootstrap_mean, mcnemar
from lace.lattice.checkpoint import load
from lace.lattice.fingerprint import weights_digest
from lace.viz.trace import record

END = "<eos>"
BASE = "puzzles-isolated"
"""The model in the package whose threads have never read each other; it can calculate, in signs and without words."""
VOCABULARY = 1000
"""At most; what the lattices are written in needs less."""
QUOTED = re.compile(r"From Thread (\d+): that way ends at (-?\d+)")
"""What a thread says that another one has found."""
NUMBERS = 100
"""Numbers below it are one token each, behind a space and behind a sign."""


def write_bytes_tokenizer(folder: Path) -> None:
    """A token for each byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: n for n, token in enumerate([END, *alphabet])}
    _wrap(Tokenizer(models.BPE(vocab=vocabulary, merges=[]))).save_pretrained(folder)


def _wrap(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=END)


def trained_tokenizer(run: Path, size: int) -> PreTrainedTokenizerBase:
    """Byte pairs that are frequent in a run's prompts and threads, and in small numbers; most words are one token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=[END], initial_alphabet=alphabet, show_progress=False)
    numbers = [f" {n} -{n}" for n in range(NUMBERS)] * NUMBERS
    tokenizer.train_from_iterator(chain(_texts(run), numbers), trainer)
    return _wrap(tokenizer)


def _texts(run: Path) -> Iterator[str]:
    written = decoders.ByteLevel()
    for part in PARTS:
        for made in read_records(run / part / FILE_NAME):
            yield made.prompt
            for thread in made.threads:
                yield written.decode([token for token in thread.tokens if token != END])


def model_for(tokenizer: PreTrainedTokenizerBase) -> Qwen3ForCausalLM:
    """The layers of `BASE`, without its lattice, and its embeddings of the numbers and signs that both vocabularies
    have; those of the words are random. One that has to learn to copy numbers as well takes several times as long."""
    set_seed(0)
    base: Any
    base, signs = load(BASE)
    assert signs is not None
    settings = {**base.config.to_dict(), "vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id}
    model = Qwen3ForCausalLM(Qwen3Config.from_dict({**settings, "bos_token_id": None, "pad_token_id": None}))
    model.model.norm.load_state_dict(base.model.norm.state_dict())
    model.model.layers.load_state_dict(base.model.layers.state_dict(), strict=False)  # less the weights of the lattice
    known, embeddings = base.get_input_embeddings(), cast(nn.Embedding, model.get_input_embeddings())
    with torch.no_grad():
        embeddings.weight.normal_(std=known.weight.std().item())
        for token, number in tokenizer.get_vocab().items():
            if (same := signs.get_vocab().get(token.lstrip("Ġ"))) is not None:
                embeddings.weight[number] = known.weight[same]
    return model


def unseen_questions(run: Path, n: int) -> list[Question]:
    """Questions of the run's own reasoning-gym tasks under another seed, in the shares that the run has them, without
    those that it has."""
    config, stages, _ = read_about(run)
    known = {item.question.text for _, item in read_items(run / stages[0]["folder"] / OUTCOMES_NAME)}
    sources = [source for source in config.questions.sources if isinstance(source, ReasoningGymSource)]
    total, found = sum(source.size for source in sources), list[Question]()
    for source in sources:
        wanted, other = round(n * source.size / total), source.model_copy(update={"seed": 10_000 + source.seed})
        for question in read_source(other):
            assert isinstance(question, Question)
            if wanted and question.text not in known:
                known.add(question.text)
                found.append(question)
                wanted -= 1
    return found


def ask(run: Path, model: str, isolated: str, sampling: SamplingParams, n: int) -> dict[str, Any]:
    """Accuracies on unseen questions, by task and strategy, and how much of their attention the threads give each
    other. `isolated` is a model that has learned from the same data with the lattice off, for threads that have never
    read each other."""
    engine, questions = load_engine(model), unseen_questions(run, n)
    report: dict[str, Any] = {
        **provenance(),
        "weights": weights_digest(engine.model),
        "threads": sampling.threads,
        "temperature": sampling.temperature,
        "max_tokens": sampling.max_tokens,
        "tasks": {},
    }
    answered: dict[str, list[LatticeResult]] = {
        strategy: _answers(engine, questions, sampling, strategy) for strategy in STRATEGIES
    }
    answered["isolated"] = _answers(load_engine(isolated), questions, sampling, "independent")
    tasks: dict[str, list[int]] = {}
    for index, question in enumerate(questions):
        tasks.setdefault(str(question.data["task"]), []).append(index)
    for task, chosen in tasks.items():
        judged = {
            strategy: {
                name: [judge(questions[i], results[i])[name] for i in chosen]
                for name in ("acc", "mean@N", "vote@N", "pass@N", "tag_valid")
            }
            for strategy, results in answered.items()
        }
        on = judged["lace"]["acc"]
        against = {
            f"{strategy} {metric}": judged[strategy][metric]
            for strategy, metric in (
                ("isolated", "vote@N"),
                ("isolated", "acc"),
                ("isolated", "pass@N"),
                ("independent", "vote@N"),
                ("swapped", "acc"),
            )
        }
        estimates: dict[str, Any] = {
            strategy: {name: bootstrap_mean(values).to_dict() for name, values in metrics.items()}
            for strategy, metrics in judged.items()
        }
        report["tasks"][task] = {
            "n": len(chosen),
            **estimates,
            "lace acc less": {
                name: bootstrap_difference(on, values).to_dict() | {"p": mcnemar(on, values).p}
                for name, values in against.items()
            },
        }
    report["cross_thread_attention"] = fmean(_read_of_others(engine, result) for result in answered["lace"][:50])
    report["reading"] = reading(questions, answered["lace"])
    report["samples"] = [
        _told(question, result) for question, result in zip(questions[:10], answered["lace"], strict=False)
    ]
    return report


def _told(question: Question, result: LatticeResult) -> dict[str, Any]:
    threads = [f"Thread {thread.label}:{thread.text}" for thread in result.threads]
    return {"question": question.text, "answer": question.answer, "chosen": result.chosen, "threads": threads}


def _answers(engine: Engine, questions: list[Question], sampling: SamplingParams, strategy: Any) -> list[LatticeResult]:
    params = [replace(sampling, seed=index) for index in range(len(questions))]
    return engine.generate([question.text for question in questions], params, strategy=strategy)


def judge(question: Question, result: LatticeResult) -> dict[str, float]:
    """What the threads of one question reached, by the names of `lace eval`."""
    values = question.model_dump()
    right = [is_right(question.verifier, values, thread.answer or "") for thread in result.threads]
    vote = majority([thread.answer for thread in result.threads])
    return {
        "acc": float(right[result.chosen]),
        "mean@N": fmean(right),
        "vote@N": float(is_right(question.verifier, values, vote or "")),
        "pass@N": float(any(right)),
        "tag_valid": float(sum(thread.tag == "best" for thread in result.threads) == 1),
    }


def reading(questions: list[Question], results: list[LatticeResult]) -> dict[str, float | None]:
    """What threads that read each other make of it: counts, and shares of them."""
    quotes, mixed, smallest, warned, one_best = [], [], [], [], []
    for question, result in zip(questions, results, strict=True):
        answers = {thread.label: thread.answer for thread in result.threads}
        for thread in result.threads:
            quoted = [(int(of), told) for of, told in QUOTED.findall(thread.text)]
            quotes += [answers[of] == told for of, told in quoted if of in answers and of != thread.label]
            warned.append(any(f"Not as Thread {label}:" in thread.text for label in answers))
        if [thread.tag for thread in result.threads].count("best") == 1:
            one_best.append(result)
            smallest.append(result.threads[result.chosen].label == min(answers))
        judged = judge(question, result)
        if 0 < judged["mean@N"] < 1:
            mixed.append(judged)
    return {
        "quotes": len(quotes),
        "quotes_true": _share(quotes),
        "one_best": len(one_best),
        "smallest_label_best": _share(smallest),
        "disagreeing": len(mixed),
        "disagreeing_chosen_right": _share(judged["acc"] for judged in mixed),
        "disagreeing_threads_right": _share(judged["mean@N"] for judged in mixed),
        "threads_that_warn": _share(warned),
    }


def _share(values: Iterable[float]) -> float | None:
    """None where there is nothing to take a share of."""
    return fmean(found) if (found := list(values)) else None


def _read_of_others(engine: Engine, result: LatticeResult) -> float:
    """Share of a lattice's attention that goes to other threads, over layers, tokens and heads; the rest lies on the
    null entry."""
    return float(record(engine, result).mass().sum(dim=-1).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_subparsers(dest="what", required=True)
    what.add_parser("bytes").add_argument("tokenizer", type=Path)
    base = what.add_parser("base")
    base.add_argument("run", type=Path)
    base.add_argument("model", type=Path)
    asked = what.add_parser("ask")
    asked.add_argument("run", type=Path)
    asked.add_argument("model")
    asked.add_argument("--isolated", required=True, help="model of the same data, learned with the lattice off")
    asked.add_argument("--n", type=int, default=600)
    asked.add_argument("--threads", type=int, default=4)
    asked.add_argument("--temperature", type=float, default=0.7)
    asked.add_argument("--max-tokens", type=int, default=256)
    asked.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.what == "bytes":
        write_bytes_tokenizer(options.tokenizer)
    elif options.what == "ask":
        sampling = SamplingParams(
            threads=options.threads, temperature=options.temperature, max_tokens=options.max_tokens, top_p=0.9
        )
        tell(ask(options.run, options.model, options.isolated, sampling, options.n), options.json)
    else:
        tokenizer = trained_tokenizer(options.run, VOCABULARY)
        model_for(tokenizer).save_pretrained(options.model)
        tokenizer.save_pretrained(options.model)


if __name__ == "__main__":
    main()
