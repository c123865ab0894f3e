"""The engine in a thread of its own, and the line that requests stand in.

    event loop                                   engine thread
    submit(ticket)             ───orders──►      between two steps: adds, cancels
    ticket.events()            ◄──events──       after each step: tokens, results, failures

Only the engine thread touches the scheduler; only the event loop touches tickets.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from queue import Empty, SimpleQueue
from typing import Literal

from lace.engine.engine import Engine
from lace.engine.exchanges import step_with_exchanges
from lace.engine.result import LatticeResult, TokenEvent
from lace.engine.scheduler import Occupancy, Scheduler
from lace.engine.threads import Lattice
from lace.lattice.fingerprint import weights_digest
from lace.serve.errors import ApiError
from lace.serve.metrics import Metrics
from lace.serve.settings import FAILURES_IN_A_ROW
from lace.viz.trace import Trace

log = logging.getLogger("uvicorn.error")

Event = TokenEvent | LatticeResult | Trace
Delivery = tuple["Ticket", int, Event]
State = Literal["loading", "ready", "stopped"]
Health = State | Literal["failing"]


class Ticket:
    """One request in the engine: its lattices, and what they write.

    Args:
        lattices: one for each prompt.
        exchanges: whether its tokens say what they had read of other threads.
        record: makes the recording of a prompt that has ended, if one is wanted; called in the engine thread.
    """

    def __init__(
        self,
        lattices: list[Lattice],
        *,
        exchanges: bool = False,
        record: Callable[[int, LatticeResult], Trace] | None = None,
    ) -> None:
        self.lattices, self.exchanges, self.record = lattices, exchanges, record
        self.submitted = time.perf_counter()
        self.writes = False
        """Whether it has got its first token."""
        self.left = len(lattices)
        """Lattices that have not ended."""
        self.handles: list[int] = []
        """Of its lattices in the scheduler; the engine thread's."""
        self.queue: asyncio.Queue[tuple[int, Event] | ApiError | None] = asyncio.Queue()

    async def events(self) -> AsyncIterator[tuple[int, Event]]:
        """What its lattices write, each with the index of its prompt, until all have ended or the ticket is closed;
        behind each result its recording, if one is wanted.

        Raises:
            ApiError: if the engine failed.
        """
        ended, last = 0, Trace if self.record else LatticeResult
        while ended < len(self.lattices) and (item := await self.queue.get()) is not None:
            if isinstance(item, ApiError):
                raise item
            yield item
            ended += isinstance(item[1], last)


class Worker:
    """Runs the engine for as long as the server lives.

    Args:
        load: makes the engine, in the engine thread; takes long.
        max_concurrent, cache_tokens: of the scheduler.
        max_waiting: lattices that may stand in line.
    """

    def __init__(self, load: Callable[[], Engine], *, max_concurrent: int, cache_tokens: int, max_waiting: int) -> None:
        self.load, self.max_concurrent, self.cache_tokens = load, max_concurrent, cache_tokens
        self.capacity = max_concurrent + max_waiting
        self.state: State = "loading"
        self.failure: BaseException | None = None
        """Why the engine could not be loaded, or has died before its first step."""
        self.engine: Engine | None = None
        self.fingerprint = ""
        """Of the weights, once they are loaded."""
        self.occupancy = Occupancy(0, 0, 0, 0)
        self.metrics = Metrics(lambda: self.occupancy)
        self.tickets: set[Ticket] = set()
        self._scheduler: Scheduler | None = None
        self._new_thread()

    def _new_thread(self) -> None:
        self._orders: SimpleQueue[tuple[Literal["add", "cancel", "stop"], Ticket | None]] = SimpleQueue()
        self._owners: dict[int, tuple[Ticket, int]] = {}
        """Ticket and prompt of each handle; the engine thread's."""
        self._proven = False
        """Whether it has done a step."""
        self._failures_in_a_row = 0
        """Steps that failed since the last one that did not."""
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    @property
    def health(self) -> Health:
        """Its state; "failing" while it takes requests, but step after step has failed."""
        failing = self.state == "ready" and self._failures_in_a_row >= FAILURES_IN_A_ROW
        return "failing" if failing else self.state

    # --- in the event loop --------------------------------------------------------------------------------------

    def start(self, on_end: Callable[[], None]) -> None:
        """Begins to load. `on_end` is called in the event loop when the engine has ended for good."""
        self._loop, self._on_end = asyncio.get_running_loop(), on_end
        self._thread.start()

    async def stop(self) -> None:
        """Ends the engine thread after its current step; whoever still waits is told. Loading is not waited for."""
        self._orders.put(("stop", None))
        if self.state != "loading":
            await asyncio.to_thread(self._thread.join)

    def give_up(self) -> None:
        """Tells whoever still waits that the server does not."""
        for ticket in self.tickets:
            ticket.queue.put_nowait(ApiError(503, "the server is stopping", code="server_stopping"))

    def _ended(self, failure: BaseException | None) -> None:
        """The engine thread is no more. One that has died at its work is replaced; the engine is loaded anew."""
        if failure is None or not self._proven:
            self._fail(set(self.tickets), "the server has stopped")
            self.failure = failure
            self._on_end()
            return
        log.error("the engine has died; it is loaded again", exc_info=failure)
        self.metrics.failures.inc()
        self._fail(set(self.tickets), "the engine failed; try again")
        for ticket in self.tickets:
            ticket.handles.clear()  # the next scheduler gives the same numbers to others
        self.engine, self._scheduler, self.occupancy = None, None, Occupancy(0, 0, 0, 0)
        self.state = "loading"
        self._new_thread()
        self._thread.start()

    def ready_engine(self, lattices: int) -> Engine:
        """The engine, if it can take one more request with so many lattices.

        Raises:
            ApiError: 503, while it is loading or after it has ended; 429, if the line is full; 400, if it would be even
                without others.
        """
        if self.engine is None or self.state != "ready":
            raise ApiError(503, f"the model is {self.state}", code=f"model_{self.state}", retry_after=2)
        if lattices > self.capacity:
            raise ApiError(400, f"{lattices} prompts are more than the {self.capacity} that may stand in line")
        # Who has its answer, but is slow to take it, stands in nobody's way.
        if sum(ticket.left for ticket in self.tickets) + lattices > self.capacity:
            raise ApiError(429, "too many requests are waiting; try again later", code="queue_full", retry_after=1)
        return self.engine

    def submit(self, ticket: Ticket) -> None:
        """Puts a request in line; `close` its ticket in any case.

        Raises:
            ApiError: 400, if the lattices could not run even alone; else as `ready_engine`, since time has passed.
        """
        self.ready_engine(len(ticket.lattices))
        assert self._scheduler is not None
        try:
            for lattice in ticket.lattices:
                self._scheduler.check(lattice)
        except ValueError as error:
            raise ApiError(400, str(error), code="cache_exceeded") from None
        self.tickets.add(ticket)
        self._orders.put(("add", ticket))

    def close(self, ticket: Ticket) -> None:
        """Takes a request out of the engine, if it is still there; its reader gets no more events."""
        if ticket in self.tickets:
            self.tickets.remove(ticket)
            self._orders.put(("cancel", ticket))
            ticket.queue.put_nowait(None)

    def _deliver(self, deliveries: list[Delivery]) -> None:
        now = time.perf_counter()
        for ticket, index, event in deliveries:
            ticket.queue.put_nowait((index, event))
            if not ticket.writes:
                ticket.writes = True
                self.metrics.first_token.observe(now - ticket.submitted)
            if isinstance(event, LatticeResult):
                ticket.left -= 1
                if not ticket.left:
                    self.metrics.request_time.observe(now - ticket.submitted)

    def _fail(self, tickets: set[Ticket], message: str) -> None:
        for ticket in tickets & self.tickets:
            ticket.queue.put_nowait(ApiError(500, message, code="engine_failed"))

    # --- in the engine thread -----------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self.engine = self.load()
            self.engine.tokenizer("x")  # settles the tokenizer, which from now on is read from several threads
            self.fingerprint = f"lace-{weights_digest(self.engine.model)}"
            self._scheduler = Scheduler(self.engine, max_lattices=self.max_concurrent, cache_tokens=self.cache_tokens)
            self.state = "ready"
            while self._take_orders():
                self._step()
        except BaseException as error:
            self._end(error)
        else:
            self._end(None)

    def _end(self, failure: BaseException | None) -> None:
        self.state = "stopped"
        if not self._loop.is_closed():  # it is, where the server was stopped while the engine was loading
            self._loop.call_soon_threadsafe(self._ended, failure)

    def _take_orders(self) -> bool:
        """Does what was asked for since the last step; waits for orders if there is nothing else to do."""
        assert self._scheduler is not None
        while True:
            try:
                order, ticket = self._orders.get(block=not self._scheduler.busy)
            except Empty:
                return True
            if ticket is None:
                return False
            if order == "add":
                for index, lattice in enumerate(ticket.lattices):
                    handle = self._scheduler.add(lattice)
                    ticket.handles.append(handle)
                    self._owners[handle] = ticket, index
            else:
                for handle in ticket.handles:
                    if self._owners.pop(handle, None):
                        self._scheduler.cancel(handle)
            self.occupancy = self._scheduler.occupancy

    def _step(self) -> None:
        """One step; if it fails, so do the requests that were in the batch, and no others after them."""
        assert self._scheduler is not None
        started = time.perf_counter()
        observed = {handle for handle, (ticket, _) in self._owners.items() if ticket.exchanges}
        try:
            events = step_with_exchanges(self._scheduler, observed) if observed else self._scheduler.step()
        except Exception:
            log.exception("a step of the engine failed; its %d requests are given up", len(self._owners))
            self.metrics.failures.inc()
            self._failures_in_a_row += 1
            failed = {ticket for ticket, _ in self._owners.values()}
            self._owners.clear()
            self._scheduler.clear()
            self.occupancy = self._scheduler.occupancy
            self._loop.call_soon_threadsafe(self._fail, failed, "the engine failed; try again")
            return
        self.occupancy = self._scheduler.occupancy
        deliveries: list[Delivery] = []
        ended: list[tuple[Ticket, int, LatticeResult]] = []
        for handle, event in events:
            ticket, index = self._owners[handle]
            deliveries.append((ticket, index, event))
            if isinstance(event, LatticeResult):
                del self._owners[handle]
                ended.append((ticket, index, event))
                self.metrics.prompt_tokens.inc(event.prompt_tokens)
            elif event.logprob is not None:
                self.metrics.tokens.inc()
        self._proven = True
        self._failures_in_a_row = 0
        self.metrics.steps.inc()
        self.metrics.step_time.observe(time.perf_counter() - started)
        self._loop.call_soon_threadsafe(self._deliver, deliveries)
        for ticket, index, result in ended:
            if ticket.record is not None:
                self._record(ticket, index, partial(ticket.record, index, result))

    def _record(self, ticket: Ticket, index: int, record: Callable[[], Trace]) -> None:
        """A second reading of what has been written; if it fails, so does its request alone."""
        try:
            trace = record()
        except Exception:
            log.exception("a run could not be recorded")
            self.metrics.failures.inc()
            self._loop.call_soon_threadsafe(self._fail, {ticket}, "the run could not be recorded")
        else:
            told: list[tuple[Ticket, int, TokenEvent | LatticeResult | Trace]] = [(ticket, index, trace)]
            self._loop.call_soon_threadsafe(self._deliver, told)
