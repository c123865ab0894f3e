"""Recordings: what they hold is what the layers computed while decoding, and they stay small."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import PreTrainedTokenizerFast

from lace.engine.engine import Engine
from lace.engine.result import LatticeResult
from lace.engine.sampling import SamplingParams
from lace.lattice.attention import LatticeAttention, ThreadLayout
from lace.lattice.graft import lattice_layers
from lace.lattice.observe import reading_parts
from lace.lattice.rope import lattice_angles, rotate
from lace.viz import trace as recording
from lace.viz.trace import Trace, find_marks, kept_entries, reading_weights, record
from tiny_engine import PROMPTS, new_model
from traces import synthetic_trace

PARAMS = SamplingParams(threads=5, max_tokens=14, seed=2, temperature=0.8, grace=None)
KINDS: list[dict[str, Any]] = [{}, {"visibility": "causal"}, {"visibility": "same_step"}, {"read_self": True}]


def _generated(tokenizer: PreTrainedTokenizerFast, **settings: Any) -> tuple[Engine, LatticeResult]:
    engine = Engine(new_model(tokenizer, **settings), tokenizer)
    return engine, engine.generate(PROMPTS[0], PARAMS)[0]


def _readings(trace: Trace, n: int, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Mass (Y, H, N) and the kept weights by entry (Y, V, E) of one token."""
    place = sum(len(thread.texts) for thread in trace.threads[:n]) + step
    entries = trace.entries_YVGK[:, :, place].long()
    most = len(trace.threads) * max(len(thread.texts) for thread in trace.threads)
    dense = torch.zeros(*entries.shape[:2], most).scatter_add_(2, entries, trace.weights_YVGK[:, :, place].float())
    return trace.mass()[:, place], dense


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_the_recording_is_what_decoding_read(tokenizer: PreTrainedTokenizerFast, kind: dict[str, Any]) -> None:
    """Hooks on the decoding itself, pass by pass; its weights are those that make up what the layer really added."""
    engine = Engine(new_model(tokenizer, layers=(1, 3), **kind), tokenizer)
    passes: list[tuple[int, ThreadLayout, torch.Tensor, torch.Tensor]] = []

    def note(module: LatticeAttention, args: tuple[Any, ...], output: torch.Tensor) -> None:
        x, layout = args
        weights, gates = reading_weights(module, x, layout)
        values = reading_parts(module, x, layout)[2][0].flatten(0, 1)
        read = (weights @ values).transpose(0, 1)[layout.place_R] * gates[layout.place_R, :, None]
        torch.testing.assert_close(module.up_proj(read.flatten(1))[:, None], output, atol=1e-5, rtol=1e-4)
        passes.append((module.index, layout, weights, gates))

    hooks = [lattice.register_forward_hook(note) for lattice in lattice_layers(engine.model)]
    result = engine.generate(PROMPTS[0], PARAMS)[0]
    for hook in hooks:
        hook.remove()
    trace = record(engine, result)
    assert trace.layers == [1, 3]
    assert trace.replay_gap < 1e-4
    starts = [sum(len(thread.texts) for thread in trace.threads[:n]) for n in range(5)]
    compared = 0
    for layer in range(len(trace.layers)):
        for step, (_, _, weights, gates) in enumerate(one for one in passes if one[0] == layer):
            for n, thread in enumerate(trace.threads):
                if not thread.given <= step + 1 < len(thread.texts):
                    continue  # no token of this thread was chosen by this pass
                mass, kept = _readings(trace, n, step + 1)
                by_thread = weights[:, n].unflatten(1, (-1, 5)).sum(dim=1)
                torch.testing.assert_close(mass[layer], by_thread, atol=5e-3, rtol=5e-3)
                torch.testing.assert_close(
                    trace.gates_YGH[layer, starts[n] + step + 1].float(), gates[n], atol=1e-3, rtol=1e-3
                )
                views = torch.cat((weights[:, n].mean(dim=0, keepdim=True), weights[:, n]))
                views[:, n::5] = 0  # entries of its own
                best = views.topk(min(recording.MOST_ENTRIES, views.shape[1]))
                for view, (values, places) in enumerate(zip(best.values, best.indices, strict=True)):
                    expected = torch.zeros(kept.shape[2]).scatter(0, places, values)
                    torch.testing.assert_close(kept[layer, view], expected, atol=1e-3, rtol=1e-3)
                compared += 1
    assert compared > 20


def test_a_recording_by_hand(tokenizer: PreTrainedTokenizerFast) -> None:
    """One softmax of `lace.lattice.attention` in its own weights, all threads whole, without any cache."""
    engine, result = _generated(tokenizer)
    trace = record(engine, result, layers=[2])
    prompt = tokenizer(PROMPTS[0])["input_ids"]
    starts = torch.tensor([len(thread.texts) for thread in trace.threads]).cumsum(0).tolist()
    rows = [trace.token_ids_G[a:b].tolist() for a, b in zip([0, *starts], starts, strict=False)]
    width = max(map(len, rows))
    input_ids = torch.tensor([[*prompt, *row, *[0] * (width - len(row))] for row in rows])
    steps = torch.tensor([[-1] * len(prompt) + [s if s < len(row) else -1 for s in range(width)] for row in rows])
    seen: list[torch.Tensor] = []
    module = lattice_layers(engine.model)[0]
    assert isinstance(module, LatticeAttention)
    hook = module.register_forward_hook(lambda module, args, output: seen.append(args[0]))
    labels = torch.tensor([thread.label for thread in trace.threads])
    with torch.no_grad():
        logits = engine.model(
            input_ids=input_ids, steps=steps, thread_ids=labels, lattice_rows=torch.arange(5)[None], use_cache=False
        ).logits
    hook.remove()
    config = module.config
    q, k, _, g = module.qkvg_proj(module.norm(module.down_proj(seen[0]))).split(module.split, dim=-1)
    cos, sin = lattice_angles(config, steps, labels)
    q = rotate(q.unflatten(-1, (config.num_heads, config.head_dim)), cos[:, :, None], sin[:, :, None])
    k = rotate(k, cos, sin)
    place = 0
    for n, thread in enumerate(trace.threads):
        for step in range(len(thread.texts)):
            mass, kept = _readings(trace, n, step)
            if step < thread.given:
                assert not mass.any()
                assert not kept.any()
                assert trace.entropy_G[place].isnan()
            else:
                at = len(prompt) + step - 1  # of the query
                entries = [(m, s) for m in range(5) for s in range(min(step - 1, len(rows[m]))) if m != n]
                keys = torch.stack([module.null_key, *(k[m, len(prompt) + s] for m, s in entries)])
                weights = (q[n, at] @ keys.T / config.head_dim**0.5).softmax(dim=-1)[:, 1:]
                expected = torch.zeros(len(weights), 5)
                for (m, _), weight in zip(entries, weights.T, strict=True):
                    expected[:, m] += weight
                torch.testing.assert_close(mass[0], expected, atol=5e-3, rtol=5e-3)
                if entries:
                    best = int(kept[0, 1].argmax())
                    assert kept[0, 1, best].item() == pytest.approx(weights[0].max().item(), abs=1e-3)
                    assert (best % 5, best // 5) in entries
                torch.testing.assert_close(trace.gates_YGH[0, place].float(), g[n, at].sigmoid(), atol=1e-3, rtol=1e-3)
                logprobs = logits[n, at].log_softmax(dim=-1)
                entropy = -(logprobs.exp() * logprobs).sum().item()
                assert trace.entropy_G[place].item() == pytest.approx(entropy, abs=5e-3)
                assert trace.logprobs_G[place].item() == pytest.approx(logprobs[rows[n][step]].item(), abs=5e-2)
            place += 1


def test_recording_changes_no_text(tokenizer: PreTrainedTokenizerFast) -> None:
    engine, before = _generated(tokenizer)
    trace = record(engine, before, model="tiny", correct=[True, False, None, None, None])
    again = engine.generate(PROMPTS[0], PARAMS)[0]
    assert [thread.token_ids for thread in again.threads] == [thread.token_ids for thread in before.threads]
    assert [thread.logprobs for thread in again.threads] == [thread.logprobs for thread in before.threads]
    assert not any(lattice._forward_hooks for lattice in lattice_layers(engine.model))  # nothing is left that costs
    for written, thread in zip(before.threads, trace.threads, strict=True):
        assert "".join(thread.texts[thread.given :]).strip() == written.text
        assert "".join(thread.texts[: thread.given]) == f"Thread {written.label} :"  # as this tokenizer writes it
        assert (thread.tag, thread.answer, thread.finish_reason) == (written.tag, written.answer, written.finish_reason)
    assert [thread.correct for thread in trace.threads] == [True, False, None, None, None]
    assert trace.seconds_S.tolist() == pytest.approx(before.step_seconds)  # of the decoding, not of the recording
    assert len(trace.seconds_S) == max(len(thread.texts) for thread in trace.threads)


def test_the_size_of_a_pass_decides_nothing(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, result = _generated(tokenizer)
    whole = record(engine, result)
    monkeypatch.setattr(recording, "PASS_SIZE", 1)
    for name, value in vars(record(engine, result)).items():
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            torch.testing.assert_close(value, getattr(whole, name), atol=2e-3, rtol=2e-3, equal_nan=True)


def test_independent_threads_have_no_readings(tokenizer: PreTrainedTokenizerFast) -> None:
    engine = Engine(new_model(tokenizer), tokenizer)
    trace = record(engine, engine.generate(PROMPTS[0], PARAMS, strategy="independent")[0])
    assert trace.layers == []
    assert trace.replay_gap < 1e-4
    assert trace.entropy_G.isfinite().sum() == trace.logprobs_G.isfinite().sum() > 0


def test_what_cannot_be_recorded(tokenizer: PreTrainedTokenizerFast) -> None:
    engine, result = _generated(tokenizer)
    with pytest.raises(ValueError, match=r"layers \[0\] have no lattice"):
        record(engine, result, layers=[0])
    swapped = engine.generate(PROMPTS[:2], PARAMS, strategy="swapped")[0]
    with pytest.raises(ValueError, match="swapped"):
        record(engine, swapped)


@pytest.mark.parametrize(("layers", "heads"), [(7, 4), (9, 4), (10, 4), (4, 8)])
def test_sixteen_threads_of_1024_tokens_take_less_than_20_mb(tmp_path: Path, layers: int, heads: int) -> None:
    path = tmp_path / "long.trace"
    trace = synthetic_trace(threads=16, steps=1024, layers=layers, heads=heads)
    trace.save(path)
    assert trace.weights_YVGK.shape[-1] >= 1
    assert path.stat().st_size < 20e6


def test_a_very_wide_lattice_has_no_room_for_all_layers() -> None:
    assert kept_entries(layers=7, threads=128, heads=4) == 0
    assert kept_entries(layers=2, threads=128, heads=4) > 0


def test_a_trace_comes_back_from_its_file(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    engine, result = _generated(tokenizer)
    trace = record(engine, result, model="tiny")
    trace.save(tmp_path / "one.trace")
    back = Trace.load(tmp_path / "one.trace")
    for name, value in vars(trace).items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(getattr(back, name), value, atol=0, rtol=0, equal_nan=True)
        else:
            assert getattr(back, name) == value, name


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no trace")
    save_file({"a": torch.zeros(1)}, tmp_path / "weights.safetensors")
    with pytest.raises(ValueError, match="is no trace"):
        Trace.load(tmp_path / "text")
    with pytest.raises(ValueError, match="lace solve --trace"):
        Trace.load(tmp_path / "weights.safetensors")
    save_file({"a": torch.zeros(1)}, tmp_path / "old.trace", {"lace_trace": '{"version": 3}'})
    with pytest.raises(ValueError, match=r"is a trace of version 3, this program reads version 4\Z"):
        Trace.load(tmp_path / "old.trace")
    with pytest.raises(FileNotFoundError):
        Trace.load(tmp_path / "none")


def test_marks() -> None:
    texts = ["I", " see", ":", " Thr", "ead 7", " is right, thread 8 not", ". fix", " it"]
    assert find_marks(texts, {7}) == [(3, "cite", 7)]
    assert find_marks([], {7}) == []


@pytest.mark.parametrize(
    ("text", "marks"),
    [
        ("7 see 2 , 48 48 see 48 ok , answer: 48", []),  # nobody has another value
        ("48 48 see 48 keep , answer: 48", [(2, "cite", None)]),
        ("48 48 see 44 fix , answer: 44", [(2, "cite", None), (4, "fix", None)]),
        ("(x-y)*z see 14 - 9 = 5 , 6 * 5 = 30 yes 13 answer:", [(1, "cite", None), (14, "cite", 13)]),
        ("6 * 5 = 30 yes (x-y)*z 13 answer:", [(7, "cite", 13)]),
        ("6 * 5 = 30 yes a-b (x-y)*z 13 answer:", [(8, "cite", 13)]),
        ("6 * 5 = 30 yes (x-y)*z 4 answer:", []),  # its own
        ("yes, I see 2 errors to fix in thread 13", [(8, "cite", 13)]),
    ],
)
def test_marks_in_the_language_of_the_puzzles(text: str, marks: list[tuple[int, str, int | None]]) -> None:
    assert find_marks([f" {word}" for word in text.split()], {13, 20}) == marks
