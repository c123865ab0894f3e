"""Decodes many lattices at once: one prefill per prompt, then all threads of all prompts in lock-step.

    prompts -> prefill (P rows) -> fan out to N rows each -> step, step, step ... -> results
                                     main cache RowCache        one token for every live thread
                                     lattice cache              every thread reads the others' earlier tokens

`lace.engine.reference` is the same without a cache, in a few lines; the engine must match it token for token.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from lace.engine.cache import RowCache
from lace.engine.decode_step import DecodeStep, DecodeSteps
from lace.engine.result import STRATEGIES, LatticeResult, Strategy, TokenEvent
from lace.engine.sampling import SamplingParams, choose_tokens, draw_thread_ids, end_token_ids
from lace.engine.static_step import StaticLatticeCache, StaticStep, aligned, can_be_static
from lace.engine.step_input import StepInput
from lace.engine.threads import Lattice, new_thread
from lace.lattice.cache import LatticeCache
from lace.lattice.graft import lattice_layers, new_lattice_cache

COMPACT_BELOW = 0.75
"""Finished rows are computed along until fewer than this share of the rows is live; then the live ones move up."""


class Engine:
    """Generates with a model, grafted or plain.

    Args:
        model: any causal language model of transformers; without a lattice its threads are independent.
        tokenizer: the model's.
        max_rows: threads that decode at the same time at most; more prompts wait for the next batch (one lattice
            may have more). Results do not depend on it but for rounding, except that it decides who is read by whom in
            the strategy `swapped`.
        static: whether steps run over buffers of fixed shape (`lace.engine.static_step`), where the model and the
            strategy allow it; a GPU then records a step and repeats it. Off, until it has run on one.
        lean: whether a step may go by compiled code or few operators (`lace.engine.decode_step`) where the model's kind
            allows it, and not by the model's own forward pass.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_rows: int = 512,
        static: bool = False,
        lean: bool = True,
    ) -> None:
        self.model, self.tokenizer, self.max_rows = model.eval(), tokenizer, max_rows
        self.static, self.lean = static, lean
        self.config = getattr(model, "lattice_config", None)
        self.max_positions = int(getattr(model.config.get_text_config(), "max_position_embeddings", 0) or 2**31)
        self.end_ids = end_token_ids(model, tokenizer)
        self._decode_steps = DecodeSteps(self.model)

    def decode_step(self) -> DecodeStep:
        """The step of the model as it is now; asked for again, the same one until the weights change."""
        return self._decode_steps.now(lean=self.lean)

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
            for _ in self.steps(batch, strategy):
                pass
        return [lattice.result() for lattice in lattices]

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
                for step_events in self.steps(batch, strategy):
                    yield from step_events
                    for lattice in [lattice for lattice in open_lattices if not lattice.running]:
                        open_lattices.remove(lattice)
                        yield lattice.result()

        return events()

    # --- admission ----------------------------------------------------------------------------------------------

    def _admit(
        self,
        prompts: Sequence[str] | str,
        params: SamplingParams | Sequence[SamplingParams] | None,
        strategy: Strategy,
        *,
        lazy: bool,
    ) -> list[Lattice]:
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        if strategy not in STRATEGIES:
            raise ValueError(f"strategy must be one of {', '.join(STRATEGIES)}, not {strategy!r}")
        each = list(params) if isinstance(params, Sequence) else [params or SamplingParams()] * len(prompts)
        if len(each) != len(prompts):
            raise ValueError(f"{len(prompts)} prompts need as many sampling parameters, not {len(each)}")
        labels: list[list[int] | None] = [None] * len(prompts)
        if strategy == "swapped":
            self._check_swap(prompts, each)
            labels = [draw_thread_ids(each[0], self.config)] * len(prompts)
        return [
            self.new_lattice(text, p, strategy, index=n, labels=own, lazy=lazy)
            for n, (text, p, own) in enumerate(zip(prompts, each, labels, strict=True))
        ]

    def _check_swap(self, prompts: list[str], each: list[SamplingParams]) -> None:
        if self.config is None:
            raise ValueError("the strategy swapped needs a model with a lattice; graft one with lace.graft")
        if len(prompts) < 2 or len(set(prompts)) < len(prompts):
            raise ValueError("the strategy swapped needs at least two prompts, all different: each reads another")
        if len(counts := sorted({p.threads for p in each})) > 1:
            raise ValueError(f"the strategy swapped needs the same number of threads for all prompts, not {counts}")

    def new_lattice(
        self,
        prompt: str,
        params: SamplingParams,
        strategy: Strategy = "lace",
        *,
        index: int = 0,
        labels: list[int] | None = None,
        lazy: bool = False,
    ) -> Lattice:
        """The threads of one prompt before their first step.

        Args:
            prompt, params, strategy: as in `generate`.
            index: number of the prompt in its events and in messages.
            labels: of the threads; by default drawn by the seed.
            lazy: whether nobody wants text before a thread has ended.

        Raises:
            ValueError: one line, for an empty prompt or one too long for the model.
        """
        if not isinstance(prompt, str) or not prompt.strip():
            raise ValueError(f"prompt {index} is empty")
        if strategy == "independent":  # nobody can know that another thread is done
            params = replace(params, grace=None)
        prompt_ids = list(self.tokenizer(prompt)["input_ids"])
        opening = self.config.opening if self.config else ""
        labels = labels or draw_thread_ids(params, self.config)
        threads = [new_thread(self.tokenizer, opening, label, params.stop, lazy=lazy) for label in labels]
        lattice = Lattice(index, prompt, prompt_ids, params, strategy, threads, self.end_ids)
        if (total := len(prompt_ids) + lattice.max_steps) > self.max_positions:
            raise ValueError(
                f"prompt {index} is too long: {len(prompt_ids)} tokens and {lattice.max_steps} to generate make "
                f"{total}, but the model has {self.max_positions} positions"
            )
        return lattice

    def _batches(self, lattices: list[Lattice], strategy: str) -> Iterator[list[Lattice]]:
        """Splits lattices, in order, into batches of at most `max_rows` threads; a lattice is never torn apart.

        Swapped ones in equal parts of at least two, one above `max_rows` where it must be: none is left alone.
        """
        if strategy == "swapped":
            fitting = max(2, self.max_rows // len(lattices[0].threads))
            count = min(-(-len(lattices) // fitting), len(lattices) // 2)
            yield from (lattices[n * len(lattices) // count : (n + 1) * len(lattices) // count] for n in range(count))
            return
        batch: list[Lattice] = []
        for lattice in lattices:
            if batch and sum(len(x.threads) for x in [*batch, lattice]) > self.max_rows:
                yield batch
                batch = []
            batch.append(lattice)
        if batch:
            yield batch

    # --- decoding -----------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def steps(self, lattices: list[Lattice], strategy: Strategy) -> Iterator[list[TokenEvent]]:
        """Runs new lattices as one batch to its end; yields the events of each step."""
        started = time.perf_counter()
        state = _DecodingState(self.model, self.decode_step(), lattices, strategy, static=self.static)
        step = 0
        while True:
            tokens, logprobs = state.choose(step)
            writing = [lattice for lattice in lattices if lattice.running]
            events = []
            for row, (lattice, n) in enumerate(state.places):
                if lattice.threads[n].finish is None:
                    events.append(lattice.write(n, step, tokens[row], logprobs[row]))
            for lattice in lattices:
                events += lattice.close_early(step)
            written = time.perf_counter()
            for lattice in writing:
                lattice.step_seconds.append(written - started)
            yield events
            started += time.perf_counter() - written  # whoever reads the stream may be slow
            if not any(lattice.running for lattice in lattices):
                return
            state.advance(tokens, step)
            step += 1


class _DecodingState:
    """Tensors of a running batch: caches, last logits, and which thread each row is.

    Shape letters: P prompts (= lattices), N threads of the largest, R rows that are computed, T padded prompt tokens.
    """

    def __init__(
        self, model: PreTrainedModel, decode: DecodeStep, lattices: list[Lattice], strategy: str, *, static: bool
    ) -> None:
        self.model, self.decode, self.lattices = model, decode, lattices
        self.device = model.device
        self.with_lattice = strategy != "independent" and bool(lattice_layers(model))
        self.swapped = strategy == "swapped"
        self.static = static and not self.swapped and can_be_static(model, with_lattice=self.with_lattice)
        self.static_step: StaticStep | None = None
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
        room = aligned(longest + steps) if self.static else longest + steps
        self.cache = RowCache(prefill, prompt_R, room)
        self.logits_RV = out.logits[prompt_R, -1]
        self.padded = bool(longest > min(len(lattice.prompt_ids) for lattice in self.lattices))
        self.mask_RC = torch.ones(len(prompt_R), room, dtype=torch.long, device=self.device)
        self.mask_RC[:, :longest] = mask_PT[prompt_R]
        self.prompt_width = longest
        self.lengths_R = mask_PT.sum(dim=1)[prompt_R]
        sizes = len(self.lattices), self.width, steps
        self.lattice_cache: LatticeCache | None = None
        if self.with_lattice and self.static:
            self.lattice_cache = StaticLatticeCache(self.model, *sizes)
        elif self.with_lattice:
            self.lattice_cache = new_lattice_cache(self.model, *sizes, swapped=self.swapped)

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
        steps = [step if alive else -1 for alive in live]
        arguments: dict[str, Any] = {}
        if self.lattice_cache is not None:
            arguments = {
                "thread_ids": self.thread_ids_R,
                "lattice_rows": self.lattice_rows,
                "lattice_cache": self.lattice_cache,
            }
        if self.static:
            if self.static_step is None or step == self.static_step.stop:
                self.static_step = None  # first, so that its memory is free
                rows = self.mask_RC, self.lengths_R, self.prompt_width
                self.static_step = StaticStep(self.decode, self.cache, *rows, step, arguments)
            self.logits_RV = self.static_step(tokens, steps, step)
            return
        steps_R = torch.tensor(steps, device=self.device)
        if arguments:
            arguments["steps"] = steps_R[:, None]
        given = StepInput(
            torch.tensor(tokens, device=self.device),
            (self.lengths_R + step).masked_fill(steps_R < 0, 0),
            self.cache,
            self.mask_RC[:, : self.prompt_width + step + 1] if self.padded else None,
            arguments,
        )
        self.logits_RV = self.decode(given)

    def _compact(self, wanted: list[bool]) -> None:
        """Drops rows that nobody needs any more, and lattices that have ended (swapped ones stay, another may read
        them); entries of dropped rows of a lattice that stays remain in its lattice cache."""
        index = torch.tensor([row for row, want in enumerate(wanted) if want], device=self.device)
        self.cache.keep(index)
        self.static_step = None
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
