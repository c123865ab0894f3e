"""A layer's step by compiled code against the same by operators."""

from __future__ import annotations

import itertools
import os
import sys

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from lace.engine.engine import Engine
from lace.engine.reference import generate_reference
from lace.engine.rolling_cache import RollingLatticeCache, Window
from lace.engine.scheduler import Scheduler
from lace.lattice import native
from lace.lattice.attention import LatticeAttention, ThreadLayout
from lace.lattice.cache import LatticeCache
from lace.lattice.graft import graft, lattice_layers
from lace.native.build import SWITCH
from tiny import tiny_config, tiny_model, wake
from tiny_engine import PROMPTS, VARIED, new_model

pytestmark = pytest.mark.usefixtures("compiled")

WIDTH = 40
IN_ORDER = [[0, 1, 2], [3, 4, 5]]
WITH_GAPS = [[4, 0, -1, -1], [2, -1, 1, 3], [-1, 5, -1, -1]]


def new_lattice(dtype: torch.dtype = torch.float32, **settings: object) -> LatticeAttention:
    torch.manual_seed(0)
    lattice = LatticeAttention(WIDTH, tiny_config(**settings), 0)
    torch.nn.init.normal_(lattice.up_proj.weight)
    torch.nn.init.uniform_(lattice.norm.weight, 0.5, 2.0)
    return lattice.to(dtype)


def new_cache(lattice: LatticeAttention, lattices: int, threads: int, steps: int) -> LatticeCache:
    cache = LatticeCache(lattice.config, lattice.null_key[None], lattices, threads, steps)
    cache.entries[:, :, 1:] = torch.nan  # what is not written is not read
    return cache


def walk(
    lattice: LatticeAttention,
    grid: list[list[int]],
    x_SRD: torch.Tensor,
    ends: dict[int, int],
    *,
    by_kernel: bool,
    first_id: int = 3,
) -> tuple[torch.Tensor, LatticeCache]:
    """What the layer makes of the rows, (S, R, D), step by step; row r writes nothing from step `ends[r]` on."""
    steps, rows, _ = x_SRD.shape
    cache = new_cache(lattice, len(grid), len(grid[0]), steps)
    ids, lattice_rows, made = torch.arange(first_id, first_id + rows), torch.tensor(grid), []
    with torch.inference_mode(), pytest.MonkeyPatch.context() as patch:
        patch.setenv(SWITCH, str(int(by_kernel)))
        for step in range(steps):
            steps_R1 = torch.tensor([[step if step < ends.get(row, steps) else -1] for row in range(rows)])
            layout = ThreadLayout.build(lattice.config, steps_R1, ids, lattice_rows, cache)
            made.append(lattice.added(x_SRD[step], layout))
    assert bool(cache.native_layers) == by_kernel
    assert bool(cache.weights) == (not by_kernel)
    return torch.stack(made), cache


def both_ways(
    lattice: LatticeAttention, grid: list[list[int]], x_SRD: torch.Tensor, ends: dict[int, int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the layer makes of the rows by compiled code, and by operators."""
    found, expected = (walk(lattice, grid, x_SRD, ends, by_kernel=by_kernel)[0] for by_kernel in (True, False))
    return found, expected


def assert_close(
    found: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-5, *, among: torch.Tensor | None = None
) -> None:
    """Within a share of each number, or of the largest one, which may stand among others."""
    largest = (expected if among is None else among).abs().max().item()
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance * largest)


@pytest.mark.parametrize("grid", [IN_ORDER, WITH_GAPS, [[0, 1, 2, 3, 4, 5]]], ids=["in order", "with gaps", "one"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"visibility": "causal"},
        {"visibility": "causal", "read_self": True},
        {"read_self": True, "gate": "none"},
        {"horizon": 1},
        {"horizon": 11},
        {"horizon": 3, "visibility": "causal"},
        {"num_heads": 7, "low_dim": 19},
        {"time_dims": 40, "thread_dims": 0, "num_heads": 1},
    ],
    ids=str,
)
def test_equals_operators(settings: dict[str, object], grid: list[list[int]]) -> None:
    lattice, x_SRD = new_lattice(**settings), torch.randn(21, 6, WIDTH)
    (found, cache), (expected, other) = (
        walk(lattice, grid, x_SRD, {1: 9, 4: 2}, by_kernel=by_kernel) for by_kernel in (True, False)
    )
    assert_close(found, expected)
    written = other.steps_LSN >= 0
    torch.testing.assert_close(cache.written[0][written], other.written[0][written], rtol=1e-5, atol=1e-5)
    assert torch.equal(found[9:, 1], x_SRD[9:, 1])  # who has ended reads nothing
    assert ((found - x_SRD)[2:, 3].abs().amax(dim=-1) > 0.1).all()


@pytest.mark.usefixtures("whether_by_pairs")
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"visibility": "causal", "read_self": True},
        {"horizon": 3, "num_heads": 7, "low_dim": 19},
        {"time_dims": 34, "thread_dims": 0, "gate": "none"},
    ],
    ids=str,
)
def test_equals_operators_in_bfloat16(settings: dict[str, object]) -> None:
    """Both stand as far from float32, and each other, as bfloat16 rounds; compiled code rounds less often."""
    lattice, x_SRD = new_lattice(torch.bfloat16, **settings), torch.randn(21, 6, WIDTH).bfloat16()
    found, expected = (made.float() for made in both_ways(lattice, WITH_GAPS, x_SRD, {1: 9, 4: 2}))
    exact = walk(lattice.float(), WITH_GAPS, x_SRD.float(), {1: 9, 4: 2}, by_kernel=False)[0]
    scale = exact.abs().max()
    assert (found - exact).abs().max() < 0.02 * scale
    assert (found - exact).abs().mean() < (expected - exact).abs().mean()


def test_equals_operators_over_long_caches() -> None:
    lattice, x_SRD = new_lattice(), torch.randn(300, 6, WIDTH)
    found, expected = both_ways(lattice, IN_ORDER, x_SRD, {1: 200})
    assert_close(found, expected)


def test_great_scores_overflow_nowhere() -> None:
    lattice, x_SRD = new_lattice(), torch.randn(12, 6, WIDTH)
    with torch.no_grad():
        lattice.qkvg_proj.weight[: lattice.split[0]] *= 1e4
    found, expected = both_ways(lattice, IN_ORDER, x_SRD, {})
    assert found.isfinite().all()
    assert_close(found, expected, 1e-3)


@pytest.mark.parametrize("dtype", native.DTYPES, ids=str)
def test_others_change_no_bit(dtype: torch.dtype) -> None:
    """Alone, among wider lattices, and in other rows."""
    lattice, x_SRD = new_lattice(dtype), torch.randn(21, 3, WIDTH, dtype=dtype)
    alone = walk(lattice, [[0, 1, 2]], x_SRD, {1: 9}, by_kernel=True, first_id=33)[0]
    more_SRD = torch.cat((torch.randn(21, 30, WIDTH, dtype=dtype), x_SRD), dim=1)
    grid = [list(range(12)), list(range(12, 24)), [30, 31, 32, *[-1] * 9], [*range(24, 30), *[-1] * 6]]
    among = walk(lattice, grid, more_SRD, {31: 9}, by_kernel=True)[0]
    assert torch.equal(among[:, 30:], alone)


@torch.inference_mode()
def test_joining_and_leaving_a_rolling_batch_changes_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lattice that joins a wider one, sees it leave, and goes on in a window that moves back, reads what it reads
    alone."""
    moved = []
    slide = Window.slide
    monkeypatch.setattr(Window, "slide", lambda self, end: (moved.append(end - self.end), slide(self, end))[1])
    model = wake(graft(tiny_model(), tiny_config()))
    lattice, joins, leave, steps = lattice_layers(model)[0], 13, 30, 55
    x_SRD = torch.randn(steps, 7, lattice.down_proj.in_features)

    def run(*, others: bool) -> torch.Tensor:
        cache, made = RollingLatticeCache(model, 600), []
        if others:
            cache.make_room(5, 42)
            cache.join(5)
        for step in range(0 if others else joins, steps):
            if step == joins:
                cache.make_room(2, 42)
                cache.join(2)
            if others and step == leave:
                assert cache.drop({0}, 2) == [1]
            theirs = 5 if others and step < leave else 0
            own = 2 if step >= joins else 0
            if step in (0, joins, leave):  # otherwise the rows are known, and only the window may move
                grid = [list(range(theirs))] if theirs else []
                grid += [[theirs, theirs + 1, *[-1] * (theirs - 2)]] if own else []
                rows = torch.tensor([7, 8, 9, 10, 11][:theirs] + [3, 4][:own]), torch.tensor(grid)
            steps_R1 = torch.tensor([[step]] * theirs + [[step - joins]] * own)
            layout = ThreadLayout.build(lattice.config, steps_R1, *rows, cache)
            x_RD = x_SRD[step, 5 - theirs : 5 + own]
            made.append(lattice.added(x_RD, layout)[theirs:])
        assert cache.native_layers
        assert not cache.weights
        return torch.stack(made[-(steps - joins) :])

    among = run(others=True)
    assert any(by < 0 for by in moved)
    assert torch.equal(among, run(others=False))


def _share_out(_: int) -> None:
    lattice, x_SRD = new_lattice(num_heads=4, time_dims=32), torch.randn(24, 60, WIDTH)
    made = []
    for count in (1, 2):
        torch.set_num_threads(count)
        made.append(walk(lattice, [list(range(50)), [*range(50, 60), *[-1] * 40]], x_SRD, {}, by_kernel=True)[0])
    assert torch.equal(*made)


def _count_threads(_: int) -> None:
    lattice, x_SRD = new_lattice(num_heads=4, time_dims=32), torch.randn(24, 60, WIDTH)
    torch.set_num_threads(3)
    torch.randn(1000, 1000).exp().sum()
    before = os.listdir("/proc/self/task")
    assert len(before) >= 3
    walk(lattice, [list(range(60))], x_SRD, {}, by_kernel=True)
    assert os.listdir("/proc/self/task") == before


# In processes of their own: with a pool of threads this one could not be forked any more, as other tests do.


def test_threads_of_the_processor_change_no_bit(openmp: None) -> None:
    torch.multiprocessing.spawn(_share_out)


@pytest.mark.skipif(sys.platform != "linux", reason="threads are counted in /proc")
def test_threads_of_the_processor_are_those_of_torch(openmp: None) -> None:
    torch.multiprocessing.spawn(_count_threads)


@pytest.mark.parametrize("settings", [{}, {"visibility": "causal", "horizon": 4}], ids=str)
def test_engine_and_scheduler_equal_the_reference(
    settings: dict[str, object], tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And so they do by operators, and where both take turns. The rest of a step goes by operators, since heads have 8
    dimensions."""
    model = new_model(tokenizer, "llama", **settings)
    expected = [generate_reference(model, tokenizer, p, s) for p, s in zip(PROMPTS, VARIED, strict=True)]
    calls = itertools.count()
    added = native.NativeStep.added
    monkeypatch.setattr(native.NativeStep, "added", lambda *given: (next(calls), added(*given))[1])
    engine = Engine(model, tokenizer)
    for switches in ("1", "0", "1110"):
        in_turn = itertools.cycle(switches)
        monkeypatch.setenv(SWITCH, switches[0])
        before = next(calls)
        found = [[thread.token_ids for thread in result.threads] for result in engine.generate(PROMPTS, VARIED)]
        assert found == expected
        scheduler = Scheduler(engine)
        handles = [scheduler.add(engine.new_lattice(p, s)) for p, s in zip(PROMPTS, VARIED, strict=True)]
        results = {}
        while len(results) < len(handles):
            monkeypatch.setenv(SWITCH, next(in_turn))
            results |= {handle: event for handle, event in scheduler.step() if hasattr(event, "threads")}
        assert [[thread.token_ids for thread in results[handle].threads] for handle in handles] == expected
        assert (next(calls) - before > 1) == (switches != "0")


@pytest.mark.parametrize("grid", [IN_ORDER, WITH_GAPS], ids=["in order", "with gaps"])
@pytest.mark.parametrize("settings", [{}, {"visibility": "causal"}, {"horizon": 1}, {"horizon": 4}], ids=str)
@torch.inference_mode()
def test_operators_go_on_where_compiled_code_was(
    settings: dict[str, object], grid: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What compiled code does not need, the mask above all, is there as soon as somebody does."""
    lattice, x_SRD = new_lattice(**settings), torch.randn(21, 6, WIDTH)
    expected = walk(lattice, grid, x_SRD, {1: 9, 4: 2}, by_kernel=False)[0]
    cache, ids, lattice_rows = new_cache(lattice, len(grid), len(grid[0]), 21), torch.arange(3, 9), torch.tensor(grid)
    cache.added_LNSN[:, :, 1:] = torch.nan
    for step, switch in enumerate("111011100111111110000"):
        monkeypatch.setenv(SWITCH, switch)
        steps_R1 = torch.tensor([[-1 if step >= {1: 9, 4: 2}.get(row, 21) else step] for row in range(6)])
        made = lattice.added(x_SRD[step], ThreadLayout.build(lattice.config, steps_R1, ids, lattice_rows, cache))
        assert_close(made, expected[step], among=expected)


def test_watchers_and_gradients_take_the_operators() -> None:
    lattice, x_RD = new_lattice(), torch.randn(6, WIDTH)
    given = torch.zeros(6, 1, dtype=torch.long), torch.arange(3, 9), torch.tensor(IN_ORDER)
    cache = new_cache(lattice, 2, 3, 4)
    assert ThreadLayout.build(lattice.config, *given, cache).native_step is None  # gradients are on
    seen: list[torch.Tensor] = []
    hook = lattice.register_forward_hook(lambda module, args, out: seen.append(out))
    with torch.inference_mode():
        lattice.added(x_RD, ThreadLayout.build(lattice.config, *given, cache))
        hook.remove()
        assert not cache.native_layers
        lattice.added(x_RD, ThreadLayout.build(lattice.config, *given, cache))
    assert len(seen) == 1
    assert cache.native_layers
    assert native.usable(torch.device("meta"), torch.float32) is None
    assert native.usable(torch.device("cpu"), torch.float16) is None
