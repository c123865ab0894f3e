"""Continuous batching: whoever comes and goes, a lattice writes what it writes alone, and reads nobody else's cache."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from lace.cli.models import load_engine
from lace.engine.engine import Engine
from lace.engine.parity import ROUNDING, compare
from lace.engine.reference import generate_reference
from lace.engine.result import LatticeResult, Strategy, TokenEvent
from lace.engine.sampling import SamplingParams
from lace.engine.scheduler import Scheduler
from lace.tasks.task import get_task
from tiny import FAMILIES
from tiny_engine import PROMPTS, VARIED, new_model

Job = tuple[str, SamplingParams, Strategy]

JOBS: list[Job] = [(prompt, params, "lace") for prompt, params in zip(PROMPTS, VARIED, strict=True)]
MANY: list[Job] = [
    (PROMPTS[n % 3], SamplingParams(threads=1 + n % 4, max_tokens=3 + 5 * (n % 3), seed=n, grace=None), "lace")
    for n in range(14)
]


def run(scheduler: Scheduler, jobs: list[Job], *, every: int = 0) -> list[LatticeResult]:
    """Adds a job every so many steps (0: all at once), and steps until all are done."""
    order, results, step = {}, {}, 0
    while len(results) < len(jobs):
        while len(order) < len(jobs) and len(order) * every <= step:
            prompt, params, strategy = jobs[len(order)]
            order[scheduler.add(scheduler.engine.new_lattice(prompt, params, strategy))] = len(order)
        for handle, event in scheduler.step():
            if isinstance(event, LatticeResult):
                results[order[handle]] = event
        step += 1
    return [results[n] for n in range(len(jobs))]


def token_ids(results: list[LatticeResult]) -> list[list[list[int]]]:
    return [[thread.token_ids for thread in result.threads] for result in results]


def reference(engine: Engine, jobs: list[Job]) -> list[list[list[int]]]:
    return [
        generate_reference(engine.model, engine.tokenizer, prompt, params, lattice=strategy == "lace")
        for prompt, params, strategy in jobs
    ]


@pytest.mark.parametrize("every", [0, 1, 5])
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_matches_reference_whenever_lattices_join(family: str, every: int, tokenizer: PreTrainedTokenizerFast) -> None:
    engine = Engine(new_model(tokenizer, family), tokenizer)
    assert token_ids(run(Scheduler(engine), JOBS, every=every)) == reference(engine, JOBS)


@pytest.mark.parametrize(
    "settings",
    [
        {"visibility": "causal", "read_self": True},
        {"visibility": "same_step"},
        {"thread_dims": 0},
        {"kind": "mlp"},
        {"horizon": 3},
        {"horizon": 2, "visibility": "causal"},
    ],
    ids=str,
)
def test_matches_reference_in_other_modes(settings: dict[str, object], tokenizer: PreTrainedTokenizerFast) -> None:
    engine = Engine(new_model(tokenizer, **settings), tokenizer)
    assert token_ids(run(Scheduler(engine), JOBS, every=2)) == reference(engine, JOBS)


def test_a_rolling_window_is_no_limit(tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch) -> None:
    """More columns pass by than the buffers have: windows move back, and shapes change with who is there."""
    from lace.engine import rolling_cache as module

    moved: list[int] = []
    slide = module.Window.slide
    monkeypatch.setattr(module.Window, "slide", lambda self, end: (moved.append(end - self.end), slide(self, end))[1])
    engine = Engine(new_model(tokenizer), tokenizer)
    scheduler = Scheduler(engine, max_lattices=4, cache_tokens=500)
    results = run(scheduler, MANY, every=3)
    assert token_ids(results) == reference(engine, MANY)
    assert any(by < 0 for by in moved)


def test_times_of_steps_begin_when_a_lattice_is_admitted(tokenizer: PreTrainedTokenizerFast) -> None:
    engine = Engine(new_model(tokenizer), tokenizer)
    results = run(Scheduler(engine), JOBS, every=3)
    began = time.perf_counter()
    late = run(Scheduler(engine, max_lattices=1), JOBS)  # each waits for the one before
    passed = time.perf_counter() - began
    for result in [*results, *late]:
        assert len(result.step_seconds) == result.steps
        assert result.step_seconds[-1] == result.seconds
        assert all(before < after for before, after in pairwise([0.0, *result.step_seconds]))
    assert sum(result.seconds for result in late) < passed


def test_strategies_mix_in_one_batch(tokenizer: PreTrainedTokenizerFast) -> None:
    engine = Engine(new_model(tokenizer), tokenizer)
    jobs: list[Job] = [(p, s, ("independent", "lace")[n % 2]) for n, (p, s, _) in enumerate(MANY[:6])]
    assert token_ids(run(Scheduler(engine), jobs, every=2)) == reference(engine, jobs)


def test_a_plain_model_has_independent_threads(tokenizer: PreTrainedTokenizerFast) -> None:
    engine = Engine(new_model(tokenizer, fresh=True), tokenizer)
    jobs: list[Job] = [(p, s, "independent") for p, s, _ in JOBS]
    assert token_ids(run(Scheduler(engine), jobs, every=1)) == reference(engine, jobs)


def test_long_prompts_are_prefilled_in_chunks_while_others_decode(tokenizer: PreTrainedTokenizerFast) -> None:
    engine = Engine(new_model(tokenizer), tokenizer)
    # Another seed than the others: with theirs one draw lies at a border, where rounding decides.
    long = (" ".join([PROMPTS[1]] * 4), replace(VARIED[0], max_tokens=4, seed=2), "lace")
    short = (PROMPTS[0], replace(VARIED[0], max_tokens=60, seed=8), "lace")
    engine.end_ids = frozenset()
    scheduler = Scheduler(engine, prefill_chunk=3)
    first = scheduler.add(engine.new_lattice(*short))
    while not any(handle == first for handle, _ in scheduler.step()):
        pass
    second = scheduler.add(engine.new_lattice(*long))
    steps = 0
    while second not in (handles := [handle for handle, _ in scheduler.step()]):
        assert handles == [first] * 3  # each of its threads, at each step
        steps += 1
    assert steps == math.ceil(len(tokenizer(long[0])["input_ids"]) / 3) - 1
    logprobs = {
        chunk: [[t.logprobs for t in r.threads] for r in run(Scheduler(engine, prefill_chunk=chunk), [long])]
        for chunk in (1, 3, 1000)
    }
    for chunk in (1, 3):
        for a, b in zip(logprobs[chunk][0], logprobs[1000][0], strict=True):
            assert a == pytest.approx(b, abs=1e-4)


def test_the_same_text_alone_and_among_fifty_others() -> None:
    """A trained model, threads that end early or close the others: only rounding may tell a crowd from solitude."""
    engine = load_engine("puzzles")
    puzzles = [p for task in ("countdown", "chain-sum") for p in get_task(task).puzzles(26, 3, "validation")]
    jobs: list[Job] = [
        (puzzle.prompt, SamplingParams(threads=1 + n % 5, max_tokens=50, temperature=0.8, top_p=0.9, seed=n), "lace")
        for n, puzzle in enumerate(puzzles)
    ]
    crowd = run(Scheduler(engine, max_lattices=len(jobs)), jobs)
    partings = 0
    for n in (4, 17, 33, 48):
        prompt, params, strategy = jobs[n]
        offline = engine.generate(prompt, params, strategy=strategy)[0]
        alone = run(Scheduler(engine), [jobs[n]])[0]
        for other in (crowd[n], offline):
            parting = compare(engine, prompt, params, *token_ids([alone, other]))
            partings += parting is not None
            assert parting is None or parting.by_rounding
            for one, its in zip(alone.threads, other.threads, strict=True):
                common = parting.step - 4 if parting else len(one.token_ids)  # an opening has three tokens
                assert one.logprobs[:common] == pytest.approx(its.logprobs[:common], abs=ROUNDING)
    assert partings <= 2


def test_rounding_is_no_excuse_for_everything() -> None:
    """Two runs with the same draws at different temperatures part, and not by rounding; nor does a wrong token."""
    engine = load_engine("puzzles")
    params = SamplingParams(threads=2, max_tokens=30, seed=4)
    ours, theirs = token_ids([engine.generate(PROMPTS[0], replace(params, temperature=t))[0] for t in (1, 2)])
    assert compare(engine, PROMPTS[0], params, ours, ours) is None
    parting = compare(engine, PROMPTS[0], params, ours, theirs)
    assert parting is not None
    assert not parting.by_rounding
    wrong = [[*ids[:9], (ids[9] + 1) % 200, *ids[10:]] for ids in ours]
    parting = compare(engine, PROMPTS[0], params, ours, wrong)
    assert parting is not None
    assert (parting.step, parting.by_rounding) == (12, False)
    assert ours[parting.thread][9] in parting.nearby


def poison_unused(scheduler: Scheduler) -> None:
    """Writes NaN wherever no running lattice has anything: freed rows, columns outside the window, free places."""
    if scheduler.cache is not None:
        window = scheduler.cache.window
        for layer in scheduler.cache.rolling_layers:
            for buffer in (layer.keys, layer.values):
                buffer[len(window.starts) :] = torch.nan
                buffer[:, :, : window.first] = torch.nan
                buffer[:, :, window.end :] = torch.nan
    if scheduler.lattice_cache is not None:
        window = scheduler.lattice_cache.window
        for buffer in (scheduler.lattice_cache.keys, scheduler.lattice_cache.values):
            buffer[:, len(window.starts) :] = torch.nan
            buffer[:, :, : max(0, window.first - 1)] = torch.nan  # the null entries stand right before the window
            buffer[:, :, window.end :] = torch.nan
            buffer[:, :, :, scheduler.lattice_cache.threads :] = torch.nan
        steps_LSN = scheduler.lattice_cache.steps_LSN  # as if there were something to be read
        steps_LSN[len(window.starts) :] = 0
        steps_LSN[:, : window.first] = 0
        steps_LSN[:, window.end :] = 0
        steps_LSN[:, :, scheduler.lattice_cache.threads :] = 0


def test_nobody_reads_what_is_free(tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(new_model(tokenizer), tokenizer)
    expected = run(Scheduler(engine, max_lattices=4), MANY, every=2)
    scheduler = Scheduler(engine, max_lattices=4)
    step = scheduler.step

    def poisoned() -> list[tuple[int, TokenEvent | LatticeResult]]:
        with torch.inference_mode():
            poison_unused(scheduler)
        return step()

    monkeypatch.setattr(scheduler, "step", poisoned)
    assert [r.threads for r in run(scheduler, MANY, every=2)] == [r.threads for r in expected]


def poison_lattice(scheduler: Scheduler, handle: int) -> None:
    """Writes NaN into all that one running lattice has in the caches."""
    assert scheduler.cache is not None
    assert scheduler.lattice_cache is not None
    for row, (seat, _) in enumerate(scheduler.rows):
        if seat.lattice.index == handle:
            for layer in scheduler.cache.rolling_layers:
                layer.keys[row, :, scheduler.cache.window.span] = torch.nan
                layer.values[row, :, scheduler.cache.window.span] = torch.nan
    for place, seat in enumerate(scheduler.seats):
        if seat.lattice.index == handle:
            steps, threads = scheduler.lattice_cache.window.span, scheduler.lattice_cache.threads
            scheduler.lattice_cache.keys[:, place, steps, :threads] = torch.nan
            scheduler.lattice_cache.values[:, place, steps, :threads] = torch.nan


@pytest.mark.parametrize("victim", range(4))
def test_nobody_reads_another_lattice(victim: int, tokenizer: PreTrainedTokenizerFast) -> None:
    """One lattice's caches turn to NaN: it writes nonsense from then on, and the others the same bits as before."""
    engine = Engine(new_model(tokenizer), tokenizer)
    engine.end_ids = frozenset()  # all four run to the end together, whatever the poisoned one writes
    jobs: list[Job] = [
        (PROMPTS[n % 3], SamplingParams(threads=1 + n, max_tokens=12, seed=n, grace=None), "lace") for n in range(4)
    ]
    runs = []
    for poison in (False, True):
        scheduler = Scheduler(engine)
        handles = [scheduler.add(engine.new_lattice(*job)) for job in jobs]
        results: dict[int, LatticeResult] = {}
        for step in range(40):
            with torch.inference_mode():
                if poison and step == 5:
                    poison_lattice(scheduler, handles[victim])
            results |= {handle: e for handle, e in scheduler.step() if isinstance(e, LatticeResult)}
        runs.append([results[handle].threads for handle in handles])
    for n in range(4):
        assert (runs[0][n] == runs[1][n]) == (n != victim)
    assert any(math.isnan(value) for thread in runs[1][victim] for value in thread.logprobs)


def test_cancelling_frees_at_once(tokenizer: PreTrainedTokenizerFast) -> None:
    engine = Engine(new_model(tokenizer), tokenizer)
    engine.end_ids = frozenset()
    scheduler = Scheduler(engine, max_lattices=2, prefill_chunk=4)
    params = SamplingParams(threads=3, max_tokens=30, grace=None)
    handles = [scheduler.add(engine.new_lattice(PROMPTS[0], replace(params, seed=n))) for n in range(3)]
    while not scheduler.rows:
        scheduler.step()
    scheduler.step()
    assert scheduler.filling is not None
    assert (scheduler.occupancy.running, scheduler.occupancy.waiting) == (2, 1)
    scheduler.cancel(handles[2])  # waiting
    assert scheduler.occupancy.waiting == 0
    scheduler.cancel(handles[1])  # being prefilled
    assert (scheduler.occupancy.running, scheduler.occupancy.threads) == (1, 3)
    scheduler.cancel(handles[0])  # running
    scheduler.cancel(handles[0])  # gone already
    assert not scheduler.busy
    assert scheduler.cache is None
    assert scheduler.lattice_cache is None
    assert scheduler.step() == []
    assert vars(scheduler.occupancy) == {"running": 0, "waiting": 0, "threads": 0, "tokens": 0}


def test_the_others_go_on_when_one_is_cancelled(tokenizer: PreTrainedTokenizerFast) -> None:
    engine = Engine(new_model(tokenizer), tokenizer)
    jobs = MANY[:6]
    scheduler = Scheduler(engine)
    handles = [scheduler.add(engine.new_lattice(*job)) for job in jobs]
    results: dict[int, LatticeResult] = {}
    for step in range(40):
        if step == 2:
            scheduler.cancel(handles[2])
        results |= {handle: e for handle, e in scheduler.step() if isinstance(e, LatticeResult)}
    left = [n for n in range(6) if n != 2]
    assert token_ids([results[handles[n]] for n in left]) == reference(engine, [jobs[n] for n in left])
    assert set(results) == {handles[n] for n in left}


def test_budget_bounds_both_caches(tokenizer: PreTrainedTokenizerFast) -> None:
    """Lattices wait rather than that buffers grow; whoever came first joins first."""
    engine = Engine(new_model(tokenizer), tokenizer)
    scheduler = Scheduler(engine, cache_tokens=400)
    handles = [scheduler.add(engine.new_lattice(*job)) for job in MANY]
    joined: list[int] = []
    waited = 0
    while scheduler.busy:
        joined += [h for h in dict.fromkeys(handle for handle, _ in scheduler.step()) if h not in joined]
        waited += scheduler.occupancy.waiting
        for layer in scheduler.cache.rolling_layers if scheduler.cache else []:
            rows, _, columns, _ = layer.keys.shape
            assert rows * columns <= 400
        if scheduler.lattice_cache:
            assert scheduler.lattice_cache.steps_LSN.numel() <= 400
    assert waited > 0
    assert joined == handles


def test_what_can_never_fit_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    engine = Engine(new_model(tokenizer), tokenizer)
    scheduler = Scheduler(engine, cache_tokens=400)
    params = SamplingParams(threads=20, max_tokens=30)
    with pytest.raises(ValueError, match=r"20 threads of .* are more than the cache holds, 400; ask for fewer"):
        scheduler.add(engine.new_lattice(PROMPTS[0], params, "lace"))
    with pytest.raises(ValueError, match="the strategy swapped needs a batch"):
        scheduler.add(engine.new_lattice(PROMPTS[0], replace(params, threads=2), "swapped"))
    engine.max_positions = 2**40
    with pytest.raises(ValueError, match="are more than the cache holds"):  # before its draws fill the memory
        scheduler.add(engine.new_lattice(PROMPTS[0], replace(params, threads=256, max_tokens=2**36), "lace"))
    assert not scheduler.busy


def test_events_are_those_of_the_stream(tokenizer: PreTrainedTokenizerFast) -> None:
    engine = Engine(new_model(tokenizer), tokenizer)
    prompt, params, strategy = JOBS[1]
    offline = list(engine.generate_stream(prompt, params))
    scheduler = Scheduler(engine)
    handle = scheduler.add(engine.new_lattice(prompt, params, strategy))
    served = []
    while scheduler.busy:
        served += scheduler.step()
    assert {h for h, _ in served} == {handle}
    tokens = [replace(event, prompt=0) for _, event in served if isinstance(event, TokenEvent)]
    expected = [event for event in offline if isinstance(event, TokenEvent)]
    for n in range(params.threads):
        found, wanted = ([replace(t, logprob=None) for t in stream if t.thread == n] for stream in (tokens, expected))
        assert found == wanted
    result = served[-1][1]
    assert isinstance(result, LatticeResult)
    assert isinstance(offline[-1], LatticeResult)
    assert token_ids([result]) == token_ids([offline[-1]])
    assert (result.steps, result.chosen) == (offline[-1].steps, offline[-1].chosen)
