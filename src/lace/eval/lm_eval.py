"""`LaceLM`: our engine as a model of lm-evaluation-harness, in its process.

lm-eval finds models by name only once their module was imported, so this module is a command too, with all of its
options:

    python -m lace.eval.lm_eval --model lace --model_args pretrained=DIR,threads=4 --batch_size auto --tasks gsm8k
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from lm_eval.__main__ import cli_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from lace.cli.models import load_engine
from lace.engine.chat import chat_text
from lace.engine.engine import Engine
from lace.engine.result import STRATEGIES, Strategy
from lace.engine.sampling import SamplingParams
from lace.eval.run import seed_of_draws

MAX_LENGTH = 2048
"""Tokens that are scored at once if the model does not say how many it can read; lm-eval's own value."""
TEXTS_SCORED = 32
"""Texts that are scored together with the batch size `auto`."""
TAKEN = {"until", "max_gen_toks", "do_sample", "temperature", "top_p", "top_k"}
"""Settings of a task, or of `--gen_kwargs`, that can be obeyed."""

Scored = tuple[Any, list[int], list[int]]
"""Key in lm-eval's cache, tokens of the context, tokens to score."""


@register_model("lace")
class LaceLM(TemplateLM):
    """Answers with the thread that speaks for the lattice; scores given texts with the base model, without lattice.

    Texts can be scored only so: a given text has one thread, and nobody to read.

    Args:
        pretrained: shipped name, hub id or directory; or an engine.
        threads: N.
        strategy: `lace`, `independent`, or the control `swapped` (which needs a batch size of 2 or more).
        seed: request number i draws with `seed` * 1,000,003 + i.
        max_gen_toks: tokens of each thread where a task does not say.
        batch_size: requests that are decoded or scored together; `auto`: decoded, as many as the engine has rows for.
        device: where the model goes; by default, or for a GPU that is not there, it stays where it is.

    Raises:
        ValueError: one line, for wrong arguments, or what `load_engine` refuses.
    """

    def __init__(
        self,
        pretrained: str | Engine,
        threads: int = SamplingParams.threads,
        strategy: Strategy = "lace",
        seed: int = 0,
        max_gen_toks: int = SamplingParams.max_tokens,
        batch_size: int | str = "auto",
        device: str | None = None,
    ) -> None:
        super().__init__()
        if strategy not in STRATEGIES:
            raise ValueError(f"strategy must be one of {', '.join(STRATEGIES)}, not {strategy!r}")
        if str(batch_size) != "auto" and (not str(batch_size).isdecimal() or int(batch_size) < 1):
            raise ValueError(f"batch_size must be auto or at least 1, not {batch_size!r}")
        self.engine = load_engine(pretrained) if isinstance(pretrained, str) else pretrained
        # lm-eval's command asks for cuda:0 where the user says nothing, also where there is none.
        if device is not None and (not device.startswith("cuda") or torch.cuda.is_available()):
            self.engine.model.to(device)
        self.tokenizer = self.engine.tokenizer
        self.strategy, self.seed, self.max_gen_toks = strategy, seed, max_gen_toks
        self.threads = SamplingParams(threads=threads).threads  # a wrong number is told before anything is decoded
        self.batch_size = None if batch_size == "auto" else int(batch_size)

    # --- what lm-eval asks about the model ----------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        return torch.device(self.engine.model.device)

    @property
    def max_length(self) -> int:
        return self.engine.max_positions if self.engine.max_positions < 2**31 else MAX_LENGTH

    @property
    def eot_token_id(self) -> int:
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """Stands in front of what has no context; as for lm-eval's `hf`."""
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else int(bos)

    @property
    def tokenizer_name(self) -> str:
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        return chat_text(self.tokenizer, chat_history, reply=add_generation_prompt)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: object) -> list[int]:
        special = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        return list(self.tokenizer(string, **special)["input_ids"])

    # --- generation ---------------------------------------------------------------------------------------------------

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """The chosen thread's text for each request, without the blanks around it.

        Raises:
            ValueError: one line, for settings that cannot be obeyed, or a prompt that is too long.
        """
        params = [self.params(number, request.args[1]) for number, request in enumerate(requests)]
        texts = []
        with tqdm(total=len(requests), desc="Running generate_until requests", disable=disable_tqdm) as bar:
            size = self.batch_size or max(1, self.engine.max_rows // self.threads)
            for batch in _parts(range(len(requests)), size):
                prompts = [requests[i].args[0] for i in batch]
                results = self.engine.generate(prompts, [params[i] for i in batch], strategy=self.strategy)
                for i, result in zip(batch, results, strict=True):
                    texts.append(result.threads[result.chosen].text)
                    self.cache_hook.add_partial("generate_until", requests[i].args, texts[-1])
                bar.update(len(batch))
        return texts

    def params(self, number: int, settings: dict[str, Any]) -> SamplingParams:
        """What a request's settings mean for the engine; without `do_sample` or a temperature it is greedy.

        Raises:
            ValueError: one line, for a setting that is unknown or out of range.
        """
        known = normalize_gen_kwargs(settings, self.max_gen_toks)
        if unknown := sorted(known.keys() - TAKEN):
            raise ValueError(f"lace takes the generation settings {', '.join(sorted(TAKEN))}, not {unknown[0]}")
        sampled = known["do_sample"]
        return SamplingParams(
            threads=self.threads,
            max_tokens=known["max_gen_toks"],
            temperature=float(known.get("temperature", 1.0)) if sampled else 0.0,
            top_p=float(known.get("top_p", 1.0)),
            top_k=int(known.get("top_k", 0)),
            stop=tuple(text for text in known["until"] if text),
            seed=seed_of_draws(self.seed, number),
        )

    # --- scores -------------------------------------------------------------------------------------------------------

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-probability of each whole text, in windows as long as the model can read."""
        windows: list[Scored] = []
        owners = []
        for owner, request in enumerate(requests):
            pairs = get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            for pair in pairs:
                windows.append((None, *make_disjoint_window(pair)))
                owners.append(owner)
        sums = [0.0] * len(requests)
        for owner, (logprob, _) in zip(owners, self._loglikelihood_tokens(windows, disable_tqdm), strict=True):
            sums[owner] += logprob
        for request, total in zip(requests, sums, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return sums

    def _loglikelihood_tokens(
        self, requests: Sequence[Scored], disable_tqdm: bool = False, **_: object
    ) -> list[tuple[float, bool]]:
        """Log-probability of each continuation, in nats, and whether it is what greedy decoding would write."""
        longest_first = sorted(range(len(requests)), key=lambda i: -len(requests[i][1]) - len(requests[i][2]))
        found: dict[int, tuple[float, bool]] = {}
        with tqdm(total=len(requests), desc="Running loglikelihood requests", disable=disable_tqdm) as bar:
            for batch in _parts(longest_first, self.batch_size or TEXTS_SCORED):
                for i, score in zip(batch, self._score([requests[i][1:] for i in batch]), strict=True):
                    found[i] = score
                    if requests[i][0] is not None:
                        self.cache_hook.add_partial("loglikelihood", requests[i][0], score)
                bar.update(len(batch))
        return [found[i] for i in range(len(requests))]

    @torch.inference_mode()
    def _score(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
        """Scores one batch. Rows end together, so that only the last logits need to be computed; a context that is too
        long loses its beginning.

        Raises:
            ValueError: for a continuation that is longer than what the model can read.
        """
        wanted = max(len(continuation) for _, continuation in pairs)
        if wanted > self.max_length:
            raise ValueError(f"a continuation has {wanted} tokens, but the model has {self.max_length} positions")
        read = [(context + continuation)[:-1][-self.max_length :] for context, continuation in pairs]
        width = max(len(tokens) for tokens in read)
        ids_BT = torch.zeros(len(read), width, dtype=torch.long)
        mask_BT = torch.zeros_like(ids_BT)
        for row, tokens in enumerate(read):
            ids_BT[row, width - len(tokens) :] = torch.tensor(tokens)
            mask_BT[row, width - len(tokens) :] = 1
        logits_BTV = self.engine.model(
            input_ids=ids_BT.to(self.device),
            attention_mask=mask_BT.to(self.device),
            position_ids=(mask_BT.cumsum(dim=1) - 1).clamp(min=0).to(self.device),
            use_cache=False,
            logits_to_keep=wanted,
        ).logits
        scores = []
        for logits_TV, (_, continuation) in zip(logits_BTV, pairs, strict=True):
            logprobs_TV = logits_TV[wanted - len(continuation) :].float().log_softmax(dim=-1)
            told_T = torch.tensor(continuation, device=self.device)
            logprob = logprobs_TV.gather(1, told_T[:, None]).sum().item()
            scores.append((logprob, bool((logprobs_TV.argmax(dim=-1) == told_T).all())))
        return scores


def _parts(items: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    yield from (items[start : start + size] for start in range(0, len(items), size))


if __name__ == "__main__":
    cli_evaluate()
