"""Continuous batching: lattices join a running batch between two steps and leave it when they end.

    add -> waiting -> prefill, a chunk a step -> joins the batch -> step, step, step ... -> result
                      one prompt at a time       N rows, at a time that is its own

The unit is the lattice: all its threads join together and read each other and nobody else. What a lattice writes rests
on its prompt, its parameters and its seed alone; who else is there changes sums by rounding, no more.

Shape letters: R rows, C columns of the window, V vocabulary, L lattices, N threads of the widest.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field

import torch
from transformers import DynamicCache

from lace.engine.engine import Engine
from lace.engine.result import LatticeResult, TokenEvent
from lace.engine.rolling_cache import RollingCache, RollingLatticeCache, roomy
from lace.engine.sampling import choose_tokens
from lace.engine.step_input import StepInput
from lace.engine.threads import Lattice
from lace.lattice.graft import lattice_layers


@dataclass(frozen=True)
class Occupancy:
    """What the scheduler is busy with."""

    running: int
    """Lattices that decode or are being prefilled."""
    waiting: int
    threads: int
    """Rows of the batch."""
    tokens: int
    """Positions of the main cache that the running lattices may come to fill."""


@dataclass(eq=False)
class _Seat:
    """A lattice between admission and its last token."""

    lattice: Lattice
    started: float
    prefill: DynamicCache = field(default_factory=DynamicCache)
    """Made without the config: it keeps every key, also where the model looks at a sliding window only."""
    prefilled: int = 0
    """Prompt tokens that are in the cache."""
    step: int = 0
    """Of the tokens that are chosen next."""

    @property
    def threads(self) -> int:
        return len(self.lattice.threads)

    @property
    def length(self) -> int:
        return len(self.lattice.prompt_ids) + self.lattice.max_steps

    @property
    def in_lattice(self) -> bool:
        return self.lattice.strategy == "lace"


class Scheduler:
    """Decodes lattices that come and go; not safe for several threads of the processor.

    Args:
        engine: whose model is used; `Engine.new_lattice` makes what `add` takes.
        max_lattices: lattices that run at the same time at most; more wait in line.
        cache_tokens: bound of memory. Rows times columns of the main cache, and lattices times threads times steps of
            the lattice cache, are never more. Who does not fit now waits.
        prefill_chunk: prompt tokens that a step may prefill, about; longer prompts take several steps, between which
            the others decode.
    """

    def __init__(
        self, engine: Engine, *, max_lattices: int = 32, cache_tokens: int = 65_536, prefill_chunk: int = 256
    ) -> None:
        self.engine, self.model, self.device = engine, engine.model, engine.model.device
        self.decode = engine.decode_step()
        self.max_lattices, self.cache_tokens, self.prefill_chunk = max_lattices, cache_tokens, prefill_chunk
        self.with_lattice = bool(lattice_layers(self.model))
        self.waiting: deque[Lattice] = deque()
        self.filling: _Seat | None = None
        """Whose prompt is being prefilled."""
        self.seats: list[_Seat] = []
        """Of the lattices in the batch, in the order of their places in the lattice cache."""
        self.rows: list[tuple[_Seat, int]] = []
        """Lattice and thread of each row of the batch."""
        self.cache: RollingCache | None = None
        self.lattice_cache: RollingLatticeCache | None = None
        self.logits_RV = torch.empty(0)
        self.tokens: list[int] = []
        """Of each row, chosen in the last step."""
        self._handles = 0
        self._described = False

    # --- who is there -------------------------------------------------------------------------------------------

    def check(self, lattice: Lattice) -> None:
        """Whether the lattice could run if it were alone.

        Raises:
            ValueError: one line, if it could not, or needs others.
        """
        seat = _Seat(lattice, 0.0)
        if lattice.strategy == "swapped":
            raise ValueError("the strategy swapped needs a batch that stays together; use Engine.generate")
        if not self._fits([seat]):
            raise ValueError(
                f"{seat.threads} threads of {seat.length} tokens (prompt, opening and max_tokens) are more than the "
                f"cache holds, {self.cache_tokens}; ask for fewer threads or tokens"
            )

    def add(self, lattice: Lattice) -> int:
        """Puts a lattice in line, and names it in all events by the number returned.

        Raises:
            ValueError: as `check`.
        """
        self.check(lattice)
        self._handles += 1
        lattice.index = self._handles
        self.waiting.append(lattice)
        return lattice.index

    @torch.inference_mode()
    def cancel(self, handle: int) -> None:
        """Removes a lattice, wherever it is; its memory is free at once. Nothing happens if it has ended."""
        self.waiting = deque(lattice for lattice in self.waiting if lattice.index != handle)
        if self.filling is not None and self.filling.lattice.index == handle:
            self.filling = None
        self._leave({seat for seat in self.seats if seat.lattice.index == handle})

    def clear(self) -> None:
        """Removes all lattices, also after a step that failed halfway."""
        self.waiting.clear()
        self.filling, self.cache, self.lattice_cache = None, None, None
        self.seats, self.rows, self.tokens = [], [], []

    @property
    def busy(self) -> bool:
        return bool(self.waiting or self.filling or self.seats)

    @property
    def occupancy(self) -> Occupancy:
        admitted = self._admitted()
        tokens = sum(seat.threads * seat.length for seat in admitted)
        return Occupancy(len(admitted), len(self.waiting), len(self.rows), tokens)

    def _admitted(self) -> list[_Seat]:
        return [*self.seats, *([self.filling] if self.filling else [])]

    def _fits(self, seats: list[_Seat]) -> bool:
        columns = roomy(max(seat.length for seat in seats))
        steps = roomy(max(seat.lattice.max_steps for seat in seats))
        widest = max(seat.threads for seat in seats)
        return (
            len(seats) <= self.max_lattices
            and sum(seat.threads for seat in seats) * columns <= self.cache_tokens
            and len(seats) * widest * steps <= self.cache_tokens
        )

    # --- a step -------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def step(self) -> list[tuple[int, TokenEvent | LatticeResult]]:
        """One token for every running thread, and some tokens of waiting prompts.

        Returns:
            What happened, each with the handle of its lattice: tokens (the first ones in the step in which a lattice
            joins), and a result where a lattice has ended.
        """
        if self.rows:
            self._forward()
        self._prefill()
        return self._choose() if self.rows else []

    def _forward(self) -> None:
        """Feeds the tokens of the last step to the model.

        A thread's last token is fed too: the threads that go on can read it. Then its row is free.
        """
        assert self.cache is not None
        self._describe()
        window = self.cache.window
        arguments = {}
        if self.lattice_cache is not None and any(seat.in_lattice for seat in self.seats):
            steps = [seat.step - 1 if seat.in_lattice else -1 for seat, _ in self.rows]
            arguments = {
                "steps": torch.tensor(steps, device=self.device)[:, None],
                "thread_ids": self.thread_ids_R,
                "lattice_rows": self.lattice_rows_LN,
                "lattice_cache": self.lattice_cache,
            }
        mask_RC = None
        if window.first < max(window.starts):
            columns_C = torch.arange(window.first, window.end + 1, device=self.device)
            mask_RC = (columns_C >= torch.tensor(window.starts, device=self.device)[:, None]).long()
        positions = [window.end - start for start in window.starts]
        given = StepInput(
            torch.tensor(self.tokens, device=self.device),
            torch.tensor(positions, device=self.device),
            self.cache,
            mask_RC,
            arguments,
        )
        self.logits_RV = self.decode(given)
        self.cache.advance()
        self._drop_rows({row for row, (seat, n) in enumerate(self.rows) if seat.lattice.threads[n].finish is not None})

    def _prefill(self) -> None:
        """Reads prompts, one after the other, as many tokens as a step may; whose prompt is read joins the batch.

        Each prompt is cut at the same places whoever else is there, so that its cache is the same to the last bit.
        """
        spent = 0
        while spent < self.prefill_chunk and (seat := self.filling or self._admit()):
            ids = seat.lattice.prompt_ids[seat.prefilled : seat.prefilled + self.prefill_chunk]
            end = seat.prefilled + len(ids)
            out = self.model(
                input_ids=torch.tensor([ids], device=self.device),
                position_ids=torch.arange(seat.prefilled, end, device=self.device)[None],
                past_key_values=seat.prefill,
                use_cache=True,
                logits_to_keep=1,
            )
            spent, seat.prefilled = spent + len(ids), end
            if end == len(seat.lattice.prompt_ids):
                self.filling = None
                self._join(seat, out.logits[:, -1])

    def _admit(self) -> _Seat | None:
        """Takes the first in line, if there is room for it; nobody overtakes."""
        if self.waiting and self._fits([*self._admitted(), _Seat(self.waiting[0], 0.0)]):
            self.filling = _Seat(self.waiting.popleft(), time.perf_counter())
        return self.filling

    def _join(self, seat: _Seat, logits_1V: torch.Tensor) -> None:
        self.seats.append(seat)
        longest = max(other.length for other in self.seats)
        if self.cache is None:
            self.cache = RollingCache(seat.prefill, self.cache_tokens, longest)
        self.cache.make_room(seat.threads, longest)
        self.cache.join(seat.prefill, seat.threads)
        seat.prefill = DynamicCache()
        if self.with_lattice:
            self.lattice_cache = self.lattice_cache or RollingLatticeCache(self.model, self.cache_tokens)
            widest = max(other.threads for other in self.seats)
            self.lattice_cache.make_room(widest, max(other.lattice.max_steps for other in self.seats))
            self.lattice_cache.join(seat.threads)
        new_NV = logits_1V.expand(seat.threads, -1)
        self.logits_RV = torch.cat((self.logits_RV, new_NV)) if self.rows else new_NV
        self.rows += [(seat, n) for n in range(seat.threads)]
        self._described = False

    def _choose(self) -> list[tuple[int, TokenEvent | LatticeResult]]:
        """Draws the next token of every row; lattices that end by it leave."""
        self._describe()
        uniforms = {seat: seat.lattice.uniforms_SN[seat.step].tolist() for seat in self.seats}
        tokens_R, logprobs_R = choose_tokens(
            self.logits_RV,
            torch.tensor([uniforms[seat][n] for seat, n in self.rows], dtype=torch.float64, device=self.device),
            self.temperature_R,
            self.top_k_R,
            self.top_p_R,
            self.truncate,
        )
        self.tokens, logprobs = tokens_R.tolist(), logprobs_R.tolist()
        events: list[tuple[int, TokenEvent | LatticeResult]] = []
        for row, (seat, n) in enumerate(self.rows):
            opening = seat.lattice.threads[n].opening
            if seat.step < len(opening):
                self.tokens[row] = opening[seat.step]
            event = seat.lattice.write(n, seat.step, self.tokens[row], logprobs[row])
            events.append((seat.lattice.index, event))
        ended = set()
        written = time.perf_counter()
        for seat in self.seats:
            lattice = seat.lattice
            events += ((lattice.index, event) for event in lattice.close_early(seat.step))
            seat.step += 1
            lattice.step_seconds.append(written - seat.started)
            if not lattice.running:
                events.append((lattice.index, lattice.result()))
                ended.add(seat)
        self._leave(ended)
        return events

    # --- leaving ------------------------------------------------------------------------------------------------

    def _leave(self, gone: set[_Seat]) -> None:
        """Frees all that lattices hold; without lattices there are no caches."""
        if not gone:
            return
        self._drop_rows({row for row, (seat, _) in enumerate(self.rows) if seat in gone})
        places = {place for place, seat in enumerate(self.seats) if seat in gone}
        left = [seat.threads for seat in self.seats if seat not in gone]
        if not left:
            self.seats, self.cache, self.lattice_cache = [], None, None
        elif self.lattice_cache is not None:
            self.seats = [self.seats[former] for former in self.lattice_cache.drop(places, max(left))]
        else:
            self.seats = [seat for seat in self.seats if seat not in gone]
        self._described = False

    def _drop_rows(self, gone: set[int]) -> None:
        if not gone:
            return
        assert self.cache is not None
        order = self.cache.drop(gone)
        self.rows = [self.rows[former] for former in order]
        self.tokens = [self.tokens[former] for former in order]
        self.logits_RV = self.logits_RV[order]
        self._described = False

    def _describe(self) -> None:
        """Sampling parameters and thread ids of the rows, and which rows are whose, after the batch has changed."""
        if self._described:
            return
        params = [seat.lattice.params for seat, _ in self.rows]
        self.temperature_R = torch.tensor([p.temperature for p in params], dtype=torch.float32, device=self.device)
        self.top_k_R = torch.tensor([p.top_k for p in params], device=self.device)
        self.top_p_R = torch.tensor([p.top_p for p in params], dtype=torch.float32, device=self.device)
        self.truncate = any(p.top_k or p.top_p < 1 for p in params)
        labels = [seat.lattice.threads[n].label for seat, n in self.rows]
        self.thread_ids_R = torch.tensor(labels, device=self.device)
        places = {seat: place for place, seat in enumerate(self.seats)}
        rows_LN = torch.full((len(self.seats), max(seat.threads for seat in self.seats)), -1)
        for row, (seat, n) in enumerate(self.rows):
            rows_LN[places[seat], n] = row
        self.lattice_rows_LN = rows_LN.to(self.device)
        self._described = True
