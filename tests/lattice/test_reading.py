"""Who reads whom, proved on outputs: change something, and see exactly which outputs move."""

from __future__ import annotations

import operator

import pytest
import torch

from lace.lattice import attention
from lace.lattice.attention import LatticeAttention, ThreadLayout
from lace.lattice.graft import lattice_layers, lattice_off
from lace.lattice.observe import read_again
from tiny import VOCABULARY, awake_model, batch, logits, plain

PROMPT, STEPS, THREADS = 3, 6, 3
MODES = ["strict", "causal", "same_step"]
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


def _written(out: torch.Tensor) -> torch.Tensor:
    """(threads, steps, vocabulary) of one lattice."""
    return out[:, PROMPT:]


@pytest.mark.parametrize("read_self", [False, True])
@pytest.mark.parametrize("visibility", MODES)
def test_perturbation(visibility: str, read_self: bool) -> None:
    """One grafted layer, so that an output depends on another thread's token only if it reads that very entry, or
    an entry whose hidden state the token reached by causal attention in its own thread."""
    model = awake_model(visibility, layers=(2,), read_self=read_self)
    given = batch([THREADS], STEPS, [PROMPT])
    before = _written(logits(model, given))
    with lattice_off(model):
        base = _written(logits(model, given))
    for thread in range(THREADS):
        for step in range(STEPS):
            changed = {**given, "input_ids": given["input_ids"].clone()}
            changed["input_ids"][thread, PROMPT + step] += 1
            changed["input_ids"] %= VOCABULARY
            after = _written(logits(model, changed))
            for reader in range(THREADS):
                for time in range(STEPS):
                    # Entries of this thread at `step` and later differ; the reader sees those up to its own time.
                    first = step + (visibility == "strict")
                    reads = time >= (step if reader == thread else first)
                    where = (thread, step, reader, time)
                    moved = not torch.allclose(before[reader, time], after[reader, time], **TOLERANCE)
                    assert moved == reads, where
    assert not torch.allclose(before, base, **TOLERANCE)


@pytest.mark.parametrize("read_self", [False, True])
@pytest.mark.parametrize("visibility", MODES)
def test_perturbation_of_one_entry(visibility: str, read_self: bool) -> None:
    """The side path alone: change its input at one (thread, step), and exactly the entry's readers move."""
    model = awake_model(visibility, read_self=read_self)
    lattice = lattice_layers(model)[0]
    given = batch([THREADS], STEPS, [PROMPT])
    layout = ThreadLayout.build(lattice.config, given["steps"], given["thread_ids"], given["lattice_rows"])
    x = torch.randn(THREADS, PROMPT + STEPS, lattice.down_proj.in_features)
    before = _written(lattice(x, layout))
    in_time = {"strict": operator.lt, "causal": operator.le, "same_step": operator.eq}[visibility]
    for thread in range(THREADS):
        for step in range(STEPS):
            changed = x.clone()
            changed[thread, PROMPT + step] += 1
            after = _written(lattice(changed, layout))
            for reader in range(THREADS):
                for time in range(STEPS):
                    reads = in_time(step, time) and (reader != thread or read_self)
                    asks = reader == thread and time == step and before[reader, time].abs().sum() > 0
                    same = torch.equal(before[reader, time], after[reader, time])
                    assert same != (reads or asks), (thread, step, reader, time)


def test_same_step_reads_only_the_same_step() -> None:
    """A thread with a single entry, written at step 2, is read at step 2 and never again."""
    for visibility, readers in (("strict", {3, 4, 5}), ("causal", {2, 3, 4, 5}), ("same_step", {2})):
        model = awake_model(visibility, layers=(3,))  # the last, so that no later layer carries on what was read
        given = batch([2], STEPS, [PROMPT])
        given["steps"][0, PROMPT:] = torch.tensor([-1, -1, 2, -1, -1, -1])
        with lattice_off(model):
            base = logits(model, given)[1, PROMPT:]
        out = logits(model, given)[1, PROMPT:]
        assert {t for t in range(STEPS) if not torch.equal(out[t], base[t])} == readers, visibility


@pytest.mark.parametrize("visibility", MODES)
def test_prompt_is_not_part_of_the_lattice(visibility: str) -> None:
    model, given = awake_model(visibility), batch([THREADS], STEPS, [PROMPT])
    with lattice_off(model):
        base = logits(model, given)[:, :PROMPT]
    assert torch.equal(logits(model, given)[:, :PROMPT], base)


@pytest.mark.parametrize("visibility", MODES)
def test_single_thread_adds_exactly_nothing(visibility: str) -> None:
    model, given = awake_model(visibility), batch([1, 1], STEPS, [3, 4])
    with lattice_off(model):
        base = logits(model, given)
    assert torch.equal(logits(model, given), base)


def test_read_self_reads_a_single_thread() -> None:
    model, given = awake_model("strict", layers=(2,), read_self=True), batch([1], STEPS, [PROMPT])
    with lattice_off(model):
        base = logits(model, given)
    out = logits(model, given)
    assert torch.equal(out[:, : PROMPT + 1], base[:, : PROMPT + 1])
    assert not torch.isclose(out, base, **TOLERANCE).all(-1)[:, PROMPT + 1 :].any()


@pytest.mark.parametrize("visibility", MODES)
def test_dead_steps_and_padding_are_never_read(visibility: str) -> None:
    """A thread ended after two steps: whatever stands behind its end changes nobody's outputs."""
    model, given = awake_model(visibility), batch([THREADS], STEPS, [PROMPT])
    end = PROMPT + 2
    given["steps"][0, end:] = -1
    given["attention_mask"][0, end:] = 0
    before = logits(model, given)
    garbage = {**given, "input_ids": given["input_ids"].clone()}
    garbage["input_ids"][0, end:] = torch.randint(
        3, VOCABULARY, (STEPS - 2,), generator=torch.Generator().manual_seed(9)
    )
    after = logits(model, garbage)
    assert torch.equal(before[1:], after[1:])
    assert torch.equal(before[0, :end], after[0, :end])


@pytest.mark.parametrize("visibility", MODES)
def test_rows_outside_of_every_lattice_are_never_read(visibility: str) -> None:
    """A lattice's unused place is -1; it must not read row 0, where absent places are clamped to."""
    model, given = awake_model(visibility), batch([2, 3], STEPS, [PROMPT, PROMPT])
    before = logits(model, given)
    garbage = {**given, "input_ids": given["input_ids"].clone()}
    garbage["input_ids"][2:, PROMPT:] = 7
    assert torch.equal(logits(model, garbage)[:2], before[:2])
    garbage["input_ids"] = given["input_ids"].clone()
    garbage["input_ids"][:2, PROMPT:] = 7
    assert torch.equal(logits(model, garbage)[2:], before[2:])


@pytest.mark.parametrize("visibility", MODES)
def test_finished_thread_stays_readable(visibility: str) -> None:
    """Its entries are read after its end in every mode that has a memory."""
    model, given = awake_model(visibility, layers=(3,)), batch([2], STEPS, [PROMPT])
    given["steps"][0, PROMPT + 2 :] = -1
    before = logits(model, given)
    changed = {**given, "input_ids": given["input_ids"].clone()}
    changed["input_ids"][0, PROMPT] = (changed["input_ids"][0, PROMPT] + 1) % VOCABULARY
    last = torch.isclose(before[1, -1], logits(model, changed)[1, -1], **TOLERANCE).all()
    assert bool(last) == (visibility == "same_step")


def test_position_in_the_batch_does_not_matter() -> None:
    """Rows may stand in any order, lattices interleaved."""
    model, given = awake_model(), batch([3, 2], STEPS, [PROMPT, PROMPT])
    before = logits(model, given)
    order = torch.tensor([3, 0, 4, 2, 1])
    place = order.argsort()
    rows = given["lattice_rows"]
    mixed = {name: value[order] for name, value in given.items() if name != "lattice_rows"}
    mixed["lattice_rows"] = torch.where(rows >= 0, place[rows.clamp(min=0)], -1)
    torch.testing.assert_close(logits(model, mixed), before[order], **TOLERANCE)


def test_threads_are_told_apart_by_id_not_by_order() -> None:
    """Swapping two threads of a lattice with their ids swaps their outputs; swapping ids alone changes others'."""
    model, given = awake_model(), batch([3], STEPS, [PROMPT])
    before = logits(model, given)
    swapped = {**given, "lattice_rows": torch.tensor([[2, 0, 1]])}
    torch.testing.assert_close(logits(model, swapped), before, **TOLERANCE)
    other_ids = {**given, "thread_ids": given["thread_ids"][[1, 0, 2]]}
    assert not torch.allclose(logits(model, other_ids), before, **TOLERANCE)


@pytest.mark.parametrize("visibility", MODES)
def test_batched_lattices_equal_each_alone(visibility: str, family: str) -> None:
    """With prompts of different lengths and different numbers of threads."""
    model = awake_model(visibility, family)
    sizes, prompts = [2, 4, 1], [4, 3, 6]
    given = batch(sizes, STEPS, prompts)
    together = logits(model, given)
    row = 0
    for size, prompt in zip(sizes, prompts, strict=True):
        rows = slice(row, row + size)
        width = prompt + STEPS
        alone = {name: value[rows, :width] for name, value in given.items() if value.shape == given["steps"].shape}
        alone |= {"thread_ids": given["thread_ids"][rows], "lattice_rows": torch.arange(size)[None]}
        torch.testing.assert_close(logits(model, alone), together[rows, :width], rtol=1e-4, atol=1e-4)
        row += size


def test_lattices_do_not_read_each_other_without_layout() -> None:
    model, given = awake_model(), batch([2, 2], STEPS, [PROMPT, PROMPT])
    with lattice_off(model):
        base = logits(model, given)
    assert torch.equal(logits(model, plain(given)), base)


@pytest.mark.parametrize("settings", [{}, {"read_self": True}, {"horizon": 2}], ids=str)
@pytest.mark.parametrize("visibility", MODES)
def test_blocks_of_columns_equal_all_at_once(
    visibility: str, settings: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fast path of long passes against one attention over all entries, values and gradients."""
    monkeypatch.setattr(attention, "SMALLEST_BLOCK", 2)
    monkeypatch.setattr(attention, "MOST_BLOCKS", 100)
    lattice = lattice_layers(awake_model(visibility, **settings))[0]
    assert isinstance(lattice, LatticeAttention)
    given = batch([3, 1, 2], 7, [4, 2, 5])
    given["steps"][1, 8:] = -1  # a thread that ended early
    layout = ThreadLayout.build(lattice.config, given["steps"], given["thread_ids"], given["lattice_rows"])
    x = torch.randn(*given["steps"].shape, lattice.down_proj.in_features, requires_grad=True)
    weights = torch.randn_like(x)

    def gradients(added: torch.Tensor) -> list[torch.Tensor]:
        return list(torch.autograd.grad((added * weights).sum(), [x, *lattice.parameters()]))

    read_RTHK, gate_RTH, _ = read_again(lattice, x, layout)
    expected = lattice.up_proj((read_RTHK * gate_RTH[..., None]).flatten(2))
    found = lattice(x, layout)
    torch.testing.assert_close(found, expected, **TOLERANCE)
    for ours, theirs in zip(gradients(found), gradients(expected), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)

    assert len(layout.reading_blocks) >= 4
    tokens = x.shape[1]
    pairs = [(columns.stop - columns.start) * (steps.stop - steps.start) for columns, steps in layout.reading_blocks]
    assert sum(pairs) < 0.6 * tokens**2


def test_what_nobody_reads_still_has_gradients() -> None:
    """Else a process of several whose lattices are all of one thread would wait for the others for ever."""
    lattice = lattice_layers(awake_model())[0]
    given = batch([1, 1], STEPS, [PROMPT, PROMPT])
    layout = ThreadLayout.build(lattice.config, given["steps"], given["thread_ids"], given["lattice_rows"])
    lattice(torch.randn(2, PROMPT + STEPS, lattice.down_proj.in_features), layout).sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in lattice.parameters())
