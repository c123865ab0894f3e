"""Decodes many lattices at once: one prefill per prompt, then all threads of all prompts in lock-step.

    prompts -> prefill (P rows) -> fan out to N rows each -> step, step, step ... -> results
                                     main cache RowCache        one token for every live thread
                                     lattice cache              every thread reads the others' earlier tokens

`lace.engine.reference` is the same without a cache, in a few lines; the engine must match it token for token.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from lace.engine.cache import RowCache
from lace.engine.detokenize import Detokenizer
from lace.engine.result import STRATEGIES, FinishReason, LatticeResult, Strategy, ThreadResult, TokenEvent
from lace.engine.sampling import SamplingParams, choose_tokens, draw_thread_ids, draw_uniforms, end_token_ids
from lace.engine.selection import choose_thread, read_answer, read_tag
from lace.lattice.graft import lattice_layers, new_lattice_cache

COMPACT_BELOW = 0.75
"""Finished rows are computed along until fewer than this share of the rows is live; then the live ones move up."""


@dataclass
class _Thread:
    """One thread while it decodes."""

    label: int
    opening: list[int]
    detokenizer: Detokenizer
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish: FinishReason | None = None


@dataclass
class _Lattice:
    """One prompt while it decodes."""

    index: int
    prompt: str
    prompt_ids: list[int]
    params: SamplingParams
    threads: list[_Thread]
    uniforms_SN: torch.Tensor
    deadline: int | None = None
    """Step of the early stop, once a thread has closed with `[[best]]`."""
    steps: int = 0
    seconds: float = 0.0

    @property
    def running(self) -> bool:
        return any(thread.finish is None for thread in self.threads)

    @property
    def max_steps(self) -> int:
        return self.params.max_tokens + max(len(thread.opening) for thread in self.threads)


def opening_ids(tokenizer: PreTrainedTokenizerBase, opening: str, label: int) -> list[int]:
    """The given tokens that a thread begins with; `opening` as in `LatticeConfig`, empty for none."""
    text = opening.format(label=label)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []


class Engine:
    """Generates with a model, grafted or plain.

    Args:
        model: any causal language model of transformers; without a lattice its threads are independent.
        tokenizer: the model's.
        max_rows: threads that decode at the same time at most; more prompts wait for the next batch (one lattice
            may have more). Results do not depend on it but for rounding, except that it decides who is read by whom in
            the strategy `swapped`.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, max_rows: int = 512) -> None:
        self.model, self.tokenizer, self.max_rows = model.eval(), tokenizer, max_rows
        self.config = getattr(model, "lattice_config", None)
        self.max_positions = int(getattr(model.config.get_text_config(), "max_position_embeddings", 0) or 2**31)
        self.end_ids = end_token_ids(model, tokenizer)

    def generate(
        self,
        prompts: Sequence[str] | str,
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        strategy: Strategy = "lace",
    ) -> list[LatticeResult]:
        """Decodes N threads for each prompt.

        Args:
            prompts: one text or several.
            params: for all prompts, or one for each.
            strategy: `lace`; `independent` to switch the lattice off; or `swapped`, a control that asks whether the
                content of the lattice matters: each prompt's threads read, by the usual rule, the threads of the next
                prompt of the batch instead of each other (the last prompt's those of the first). Labels that they read
                are then still those of threads beside them, since all prompts share the labels of the first's seed.

        Returns:
            One result per prompt, in order.

        Raises:
            ValueError: one line, for an empty prompt, a prompt too long for the model, wrong parameters, or prompts
                that cannot be swapped.
        """
        lattices = self._admit(prompts, params, strategy, lazy=True)
        for batch in self._batches(lattices, strategy):
            for _ in self._decode(batch, strategy):
                pass
        return [self._result(lattice, strategy) for lattice in lattices]

    def generate_stream(
        self,
        prompts: Sequence[str] | str,
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        strategy: Strategy = "lace",
    ) -> Iterator[TokenEvent | LatticeResult]:
        """Like `generate`, but yields every token as it is written, and each lattice's result as soon as it is done.

        Raises:
            ValueError: as `generate`, before the first event.
        """
        lattices = self._admit(prompts, params, strategy, lazy=False)

        def events() -> Iterator[TokenEvent | LatticeResult]:
            for batch in self._batches(lattices, strategy):
                open_lattices = list(batch)
                for step_events in self._decode(batch, strategy):
                    yield from step_events
                    for lattice in [lattice for lattice in open_lattices if not lattice.running]:
                        open_lattices.remove(lattice)
                        yield self._result(lattice, strategy)

        return events()

    # --- admission ----------------------------------------------------------------------------------------------

    def _admit(
        self,
        prompts: Sequence[str] | str,
        params: SamplingParams | Sequence[SamplingParams] | None,
        strategy: str,
        *,
        lazy: bool,
    ) -> list[_Lattice]:
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        if strategy not in STRATEGIES:
            raise ValueError(f"strategy must be one of {', '.join(STRATEGIES)}, not {strategy!r}")
        each = list(params) if isinstance(params, Sequence) else [params or SamplingParams()] * len(prompts)
        if len(each) != len(prompts):
            raise ValueError(f"{len(prompts)} prompts need as many sampling parameters, not {len(each)}")
        if strategy == "independent":  # nobody can know that another thread is done
            each = [replace(p, grace=None) for p in each]
        labels = [draw_thread_ids(p, self.config) for p in each]
        if strategy == "swapped":
            self._check_swap(prompts, each)
            labels = [labels[0]] * len(prompts)
        return [
            self._new_lattice(n, text, p, own, lazy)
            for n, (text, p, own) in enumerate(zip(prompts, each, labels, strict=True))
        ]

    def _check_swap(self, prompts: list[str], each: list[SamplingParams]) -> None:
        if self.config is None:
            raise ValueError("the strategy swapped needs a model with a lattice; graft one with lace.graft")
        if len(prompts) < 2 or len(set(prompts)) < len(prompts):
            raise ValueError("the strategy swapped needs at least two prompts, all different: each reads another")
        if len(counts := sorted({p.threads for p in each})) > 1:
            raise ValueError(f"the strategy swapped needs the same number of threads for all prompts, not {counts}")

    def _new_lattice(self, index: int, prompt: str, params: SamplingParams, labels: list[int], lazy: bool) -> _Lattice:
        if not isinstance(prompt, str) or not prompt.strip():
            raise ValueError(f"prompt {index} is empty")
        prompt_ids = list(self.tokenizer(prompt)["input_ids"])
        opening = self.config.opening if self.config else ""
        threads = []
        for label in labels:
            ids = opening_ids(self.tokenizer, opening, label)
            threads.append(_Thread(label, ids, Detokenizer(self.tokenizer, params.stop, lazy=lazy)))
        lattice = _Lattice(index, prompt, prompt_ids, params, threads, torch.empty(0))
        if (total := len(prompt_ids) + lattice.max_steps) > self.max_positions:
            raise ValueError(
                f"prompt {index} is too long: {len(prompt_ids)} tokens and {lattice.max_steps} to generate make "
                f"{total}, but the model has {self.max_positions} positions"
            )
        lattice.uniforms_SN = draw_uniforms(params, lattice.max_steps)
        return lattice

    def _batches(self, lattices: list[_Lattice], strategy: str) -> Iterator[list[_Lattice]]:
        """Splits lattices, in order, into batches of at most `max_rows` threads; a lattice is never torn apart.

        Swapped ones in equal parts of at least two, one above `max_rows` where it must be: none is left alone.
        """
        if strategy == "swapped":
            fitting = max(2, self.max_rows // len(lattices[0].threads))
            count = min(-(-len(lattices) // fitting), len(lattices) // 2)
            yield from (lattices[n * len(lattices) // count : (n + 1) * len(lattices) // count] for n in range(count))
            return
        batch: list[_Lattice] = []
        for lattice in lattices:
            if batch and sum(len(x.threads) for x in [*batch, lattice]) > self.max_rows:
                yield batch
                batch = []
            batch.append(lattice)
        if batch:
            yield batch

    # --- decoding -----------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def _decode(self, lattices: list[_Lattice], strategy: str) -> Iterator[list[TokenEvent]]:
        """Runs a batch to its end; yields the events of each step."""
        started = time.perf_counter()
        state = _DecodingState(self.model, lattices, strategy)
        step = 0
        while True:
            tokens, logprobs = state.choose(step)
            events = []
            for row, (lattice, n) in enumerate(state.places):
                if lattice.threads[n].finish is None:
                    events.append(self._write(lattice, n, step, tokens[row], logprobs[row]))
            for lattice in lattices:
                if events_of := self._close_early(lattice, step):
                    events += events_of
                if not lattice.running and not lattice.seconds:
                    lattice.seconds, lattice.steps = time.perf_counter() - started, step + 1
            yielded = time.perf_counter()
            yield events
            started += time.perf_counter() - yielded  # whoever reads the stream may be slow
            if not any(lattice.running for lattice in lattices):
                return
            state.advance(tokens, step)
            step += 1

    def _write(self, lattice: _Lattice, n: int, step: int, token: int, logprob: float) -> TokenEvent:
        """Adds one token to a thread and decides whether that ends it."""
        thread = lattice.threads[n]
        if step < len(thread.opening):
            text = str(self.tokenizer.decode(thread.opening[: step + 1]))
            text = text[len(str(self.tokenizer.decode(thread.opening[:step]))) :]
            return TokenEvent(lattice.index, n, thread.label, token, text, None, None)
        thread.token_ids.append(token)
        thread.logprobs.append(logprob)
        thread.detokenizer.add(token)
        if token in self.end_ids:
            thread.finish = "eos"
        elif thread.detokenizer.stopped:
            thread.finish = "stop"
        elif len(thread.token_ids) == lattice.params.max_tokens:
            thread.finish = "length"
        text = thread.detokenizer.take(final=thread.finish is not None)
        closed = thread.finish in ("eos", "stop") and read_tag(thread.detokenizer.text) == "best"
        if closed and lattice.deadline is None and lattice.params.grace is not None:
            lattice.deadline = step + lattice.params.grace
        return TokenEvent(lattice.index, n, thread.label, token, text, logprob, thread.finish)

    def _close_early(self, lattice: _Lattice, step: int) -> list[TokenEvent]:
        """Ends the threads that are still at it some time after another has closed with `[[best]]`."""
        if lattice.deadline is None or step < lattice.deadline:
            return []
        events = []
        for n, thread in enumerate(lattice.threads):
            if thread.finish is None:
                thread.finish = "lattice"
                text = thread.detokenizer.take(final=True)
                events.append(TokenEvent(lattice.index, n, thread.label, None, text, None, "lattice"))
        return events

    def _result(self, lattice: _Lattice, strategy: Strategy) -> LatticeResult:
        threads = []
        for n, thread in enumerate(lattice.threads):
            assert thread.finish is not None
            text = thread.detokenizer.text.strip()
            threads.append(
                ThreadResult(
                    index=n,
                    label=thread.label,
                    text=text,
                    token_ids=thread.token_ids,
                    logprobs=thread.logprobs,
                    finish_reason=thread.finish,
                    tag=read_tag(text),
                    answer=read_answer(text),
                )
            )
        chosen, chosen_by = choose_thread([t.tag for t in threads], [t.answer for t in threads])
        return LatticeResult(
            prompt=lattice.prompt,
            strategy=strategy,
            threads=threads,
            chosen=chosen,
            chosen_by=chosen_by,
            prompt_tokens=len(lattice.prompt_ids),
            completion_tokens=sum(len(t.token_ids) for t in threads),
            steps=lattice.steps,
            seconds=lattice.seconds,
        )


class _DecodingState:
    """Tensors of a running batch: caches, last logits, and which thread each row is.

    Shape letters: P prompts (= lattices), N threads of the largest, R rows that are computed, T padded prompt tokens.
    """

    def __init__(self, model: PreTrainedModel, lattices: list[_Lattice], strategy: str) -> None:
        self.model, self.lattices = model, lattices
        self.device = model.device
        self.with_lattice = strategy != "independent" and bool(lattice_layers(model))
        self.swapped = strategy == "swapped"
        self.places = [(lattice, n) for lattice in lattices for n in range(len(lattice.threads))]
        """Lattice and thread of each row."""
        self.slot = {id(lattice): number for number, lattice in enumerate(lattices)}
        """Place of each lattice in the lattice cache."""
        self.width = max(len(lattice.threads) for lattice in lattices)
        steps = max(lattice.max_steps for lattice in lattices)
        self.uniforms_SR = torch.zeros(steps, len(self.places), dtype=torch.float64)
        for row, (lattice, n) in enumerate(self.places):
            self.uniforms_SR[: lattice.max_steps, row] = lattice.uniforms_SN[:, n]
        self.uniforms_SR = self.uniforms_SR.to(self.device)
        prompt_R = torch.tensor([self.slot[id(lattice)] for lattice, _ in self.places], device=self.device)
        self._prefill(prompt_R, steps)
        self._describe_rows()

    def _prefill(self, prompt_R: torch.Tensor, steps: int) -> None:
        """Runs every prompt once, without lattice (prompts are not part of it), and fans the caches out."""
        longest = max(len(lattice.prompt_ids) for lattice in self.lattices)
        ids_PT = torch.zeros(len(self.lattices), longest, dtype=torch.long)
        mask_PT = torch.zeros_like(ids_PT)
        for row, lattice in enumerate(self.lattices):
            ids_PT[row, longest - len(lattice.prompt_ids) :] = torch.tensor(lattice.prompt_ids)
            mask_PT[row, longest - len(lattice.prompt_ids) :] = 1
        ids_PT, mask_PT = ids_PT.to(self.device), mask_PT.to(self.device)
        # Layers made without the config keep every key, also where the model looks at a sliding window only.
        prefill = DynamicCache()
        out = self.model(
            input_ids=ids_PT,
            attention_mask=mask_PT,
            position_ids=(mask_PT.cumsum(dim=1) - 1).clamp(min=0),
            past_key_values=prefill,
            use_cache=True,
            logits_to_keep=1,
        )
        self.cache = RowCache(prefill, prompt_R, longest + steps)
        self.logits_RV = out.logits[prompt_R, -1]
        self.padded = bool(longest > min(len(lattice.prompt_ids) for lattice in self.lattices))
        self.mask_RC = torch.ones(len(prompt_R), longest + steps, dtype=torch.long, device=self.device)
        self.mask_RC[:, :longest] = mask_PT[prompt_R]
        self.prompt_width = longest
        self.lengths_R = mask_PT.sum(dim=1)[prompt_R]
        self.lattice_cache = (
            new_lattice_cache(self.model, len(self.lattices), self.width, steps, swapped=self.swapped)
            if self.with_lattice
            else None
        )

    def _describe_rows(self) -> None:
        """Sampling parameters and thread ids of the rows that are left."""
        params = [lattice.params for lattice, _ in self.places]
        self.temperature_R = torch.tensor([p.temperature for p in params], dtype=torch.float32, device=self.device)
        self.top_k_R = torch.tensor([p.top_k for p in params], device=self.device)
        self.top_p_R = torch.tensor([p.top_p for p in params], dtype=torch.float32, device=self.device)
        self.truncate = any(p.top_k or p.top_p < 1 for p in params)
        self.thread_ids_R = torch.tensor([lattice.threads[n].label for lattice, n in self.places], device=self.device)
        rows = torch.full((len(self.slot), self.width), -1)
        for row, (lattice, n) in enumerate(self.places):
            rows[self.slot[id(lattice)], n] = row
        self.lattice_rows = rows.to(self.device)

    def choose(self, step: int) -> tuple[list[int], list[float]]:
        """The next token of every row and its log-probability; given ones while a thread's opening lasts."""
        tokens_R, logprobs_R = choose_tokens(
            self.logits_RV,
            self.uniforms_SR[step],
            self.temperature_R,
            self.top_k_R,
            self.top_p_R,
            self.truncate,
        )
        tokens, logprobs = tokens_R.tolist(), logprobs_R.tolist()
        for row, (lattice, n) in enumerate(self.places):
            opening = lattice.threads[n].opening
            if step < len(opening):
                tokens[row] = opening[step]
        return tokens, logprobs

    def advance(self, tokens: list[int], step: int) -> None:
        """Feeds the tokens of `step` to the model.

        A thread's last token is fed too, if somebody goes on who can read it: it stays readable, as in training.
        """
        live = [
            thread.finish is None or len(thread.opening) + len(thread.token_ids) == step + 1
            for thread in (lattice.threads[n] for lattice, n in self.places)
        ]
        wanted = [
            alive and (lattice.running or self.swapped) for alive, (lattice, _) in zip(live, self.places, strict=True)
        ]
        if sum(wanted) < COMPACT_BELOW * len(wanted):
            tokens = [token for token, want in zip(tokens, wanted, strict=True) if want]
            self._compact(wanted)
            live = [True] * len(self.places)
        live_R = torch.tensor(live, device=self.device)
        arguments = {}
        if self.lattice_cache is not None:
            steps = torch.where(live_R, step, -1)[:, None]
            arguments = {
                "steps": steps,
                "thread_ids": self.thread_ids_R,
                "lattice_rows": self.lattice_rows,
                "lattice_cache": self.lattice_cache,
            }
        out = self.model(
            input_ids=torch.tensor(tokens, device=self.device)[:, None],
            attention_mask=self.mask_RC[:, : self.prompt_width + step + 1] if self.padded else None,
            position_ids=torch.where(live_R, self.lengths_R + step, 0)[:, None],
            past_key_values=self.cache,
            use_cache=True,
            **arguments,
        )
        self.logits_RV = out.logits[:, -1]

    def _compact(self, wanted: list[bool]) -> None:
        """Drops rows that nobody needs any more, and lattices that have ended (swapped ones stay, another may read
        them); entries of dropped rows of a lattice that stays remain in its lattice cache."""
        index = torch.tensor([row for row, want in enumerate(wanted) if want], device=self.device)
        self.cache.keep(index)
        self.mask_RC, self.lengths_R = self.mask_RC[index], self.lengths_R[index]
        self.uniforms_SR = self.uniforms_SR[:, index]
        self.places = [place for place, want in zip(self.places, wanted, strict=True) if want]
        going = [lattice for lattice in self.lattices if lattice.running or self.swapped]
        if self.lattice_cache is not None and len(going) < len(self.slot):
            kept = torch.tensor([self.slot[id(lattice)] for lattice in going], device=self.device)
            self.lattice_cache.keep_lattices(kept)
        if len(going) < len(self.slot):
            self.slot = {id(lattice): number for number, lattice in enumerate(going)}
            self.lattices = going
        self._describe_rows()
