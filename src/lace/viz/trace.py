"""Records what the threads of a finished lattice read of each other, into one compact file.

A recording reads the written tokens a second time: the same prompt cache, lattice cache and thread layout as in
decoding, many steps a pass, with hooks on the lattice layers. So it cannot change the text, decoding without it pays
nothing, and any result can be recorded, however it was batched. `replay_gap` says how close the second reading is.

The reading of a token is that of the query which chose it, one step before: the token of step t rests on entries of
steps up to t - 2 in `strict` mode. Given tokens (a thread's opening) and the first one, which the prompt alone
decides, have none.

The file is safetensors; all that is no tensor stands as JSON in its metadata under `lace_trace`.

Shape letters: G tokens of all threads, thread after thread; Y recorded layers; H heads; V = 1 + H views, the mean over
heads and then each head; K entries that are kept of each reading; N threads; S steps. While replaying T tokens of a
pass, Q = N * T queries and E entries, as in `lace.lattice.attention`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch.nn.functional import pad
from transformers import DynamicCache, PreTrainedTokenizerBase

from lace.engine.cache import RowCache
from lace.engine.detokenize import Detokenizer
from lace.engine.engine import Engine
from lace.engine.result import LatticeResult
from lace.engine.threads import opening_ids
from lace.lattice.attention import LatticeAttention, ThreadLayout
from lace.lattice.graft import new_lattice_cache, numbered_lattices
from lace.lattice.observe import reading_parts

VERSION = 4
BYTES_PER_TOKEN = 1100
"""Of gates and attention in all layers together, at most; 16 threads of 1,024 tokens stay below 20 MB."""
MOST_ENTRIES = 8
"""K where that bound leaves room."""
PASS_SIZE = 2**25
"""Attention weights of a layer, or logits, that a pass of the replay computes at most; decides memory, not results."""
_MARKS = re.compile(
    r"\b(?:thread (?P<named>\d+)"
    r"|yes (?:\S*[-+*/]\S* )*(?P<finder>\d+)"  # behind the name of an idea, whose it is
    r"|(?P<see>see)(?= \d+ (?:keep|fix|[-+*/]))"  # `ok`: the others have nothing else
    r"|(?<=\d )(?P<fix>fix))\b",
    re.IGNORECASE,
)
"""What `find_marks` looks for; `see`, `fix` and `yes` are words of the puzzles' language."""


@dataclass(frozen=True)
class ThreadTrace:
    """What one thread wrote."""

    label: int
    given: int
    """How many of its tokens are the opening, which was given."""
    texts: list[str]
    """What each token added to the text; its place is its generated step. May be empty, as for an end token."""
    finish_reason: str
    tag: str | None
    answer: str | None
    correct: bool | None
    """The verifier's word on the answer, None without a verifier."""
    marks: list[tuple[int, str, int | None]]
    """Steps at which it refers to others, how, and the label of the other where the text says it: `cite` (it names
    another thread, or looks at others and then does not just go on), `fix` (it corrects itself), `stop` (it was closed,
    since another one had finished)."""


@dataclass(frozen=True)
class Trace:
    """One lattice with all readings that were recorded."""

    prompt: str
    model: str
    strategy: str
    threads: list[ThreadTrace]
    chosen: int
    chosen_by: str
    seconds: float
    layers: list[int]
    """Numbers of the decoder layers that were recorded; none for threads that do not read each other."""
    visibility: str
    replay_gap: float
    """Largest difference, in nats, between a token's log-probability in decoding and in the replay."""
    token_ids_G: torch.Tensor
    """int32."""
    logprobs_G: torch.Tensor
    """float16, in nats, at temperature 1; nan for given tokens."""
    entropy_G: torch.Tensor
    """float16, in nats, of the distribution that a token was drawn from, at temperature 1."""
    gates_YGH: torch.Tensor
    """float16."""
    mass_YGHN: torch.Tensor
    """uint8, 255 times a square root, see `mass`."""
    entries_YVGK: torch.Tensor
    """Entries of other threads with the largest weights, largest first: step * N + thread, uint16, or int32 where that
    does not hold them all."""
    weights_YVGK: torch.Tensor
    """float16; 0 where there are fewer than K."""
    seconds_S: torch.Tensor
    """float32, from the start of the decoding to the tokens of each step; all threads write theirs at once."""

    def mass(self) -> torch.Tensor:
        """Attention of each head on all entries of each thread, (Y, G, H, N) in float32.

        What is missing to 1 lies on the null entry. A byte holds the square root of a share, which is right to 0.004
        near 1, and the closer the smaller it is.
        """
        return (self.mass_YGHN.float() / 255) ** 2

    def save(self, path: str | Path) -> None:
        """Writes the file at once and whole."""
        Path(path).write_bytes(self.to_bytes())

    def to_bytes(self) -> bytes:
        """What `save` writes."""
        tensors = {name: value.contiguous() for name, value in vars(self).items() if isinstance(value, torch.Tensor)}
        rest = {name: value for name, value in vars(self).items() if name not in tensors}
        rest |= {"version": VERSION, "threads": [asdict(thread) for thread in self.threads]}
        return save(tensors, {"lace_trace": json.dumps(rest, ensure_ascii=False)})

    @classmethod
    def load(cls, path: str | Path) -> Trace:
        """The inverse of `save`.

        Raises:
            ValueError: if the file is no trace, or of another version.
            FileNotFoundError: if there is none.
        """
        if Path(path).is_dir():
            raise ValueError(f"{path} is a folder, not a trace")
        try:
            with safe_open(path, framework="pt") as file:
                found = (file.metadata() or {}).get("lace_trace")
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise ValueError(f"{path} is no trace: {error}") from None
        if found is None:
            raise ValueError(f"{path} is no trace; `lace solve --trace FILE` records one")
        rest: dict[str, Any] = json.loads(found)
        if (version := rest.pop("version")) != VERSION:
            raise ValueError(f"{path} is a trace of version {version}, this program reads version {VERSION}")
        rest["threads"] = [
            ThreadTrace(**{**thread, "marks": [tuple(mark) for mark in thread["marks"]]}) for thread in rest["threads"]
        ]
        return cls(**rest, **tensors)


def recorded_layers(engine: Engine, threads: int, layers: Sequence[int] | None = None) -> list[int]:
    """Decoder layers that a recording holds: those asked for, or the last ones with a lattice that there is room for.

    Raises:
        ValueError: one line, for a layer without lattice, or if there is no room for what was asked for.
    """
    known = sorted(numbered_lattices(engine.model))
    if missing := sorted(set(layers or ()) - set(known)):
        raise ValueError(f"layers {missing} have no lattice to record; there is one in {known}")
    chosen = known if layers is None else sorted(set(layers))
    heads = engine.config.num_heads if engine.config else 0
    while chosen and not kept_entries(len(chosen), threads, heads):
        if layers is not None or len(chosen) == 1:
            raise ValueError(f"{threads} threads and {len(chosen)} layers are too many to record; take fewer")
        chosen = chosen[1:]
    return chosen


def kept_entries(layers: int, threads: int, heads: int) -> int:
    """K, as large as `BYTES_PER_TOKEN` allows; 0 if there is no room for a single one."""
    room = BYTES_PER_TOKEN // layers - heads * threads - 2 * heads
    return max(0, min(MOST_ENTRIES, room // (4 * (1 + heads))))


def record(
    engine: Engine,
    result: LatticeResult,
    *,
    model: str = "",
    correct: Sequence[bool | None] | None = None,
    layers: Sequence[int] | None = None,
) -> Trace:
    """Records a finished generation.

    Args:
        engine: the one that generated it.
        result: of the strategy `lace` or `independent`.
        model: name to show.
        correct: the verifier's word on each thread's answer.
        layers: numbers of decoder layers with a lattice (`numbered_lattices`). Default: all, or as many of the last
            as there is room for.

    Raises:
        ValueError: for a swapped lattice, a layer without lattice, or more layers or threads than there is room for.
    """
    if result.strategy == "swapped":
        raise ValueError("a swapped lattice cannot be recorded by itself: it reads another prompt's")
    replay = _Replay(engine, result, layers)
    replay.run()
    words = [_pieces(engine.tokenizer, row[given:]) for row, given in zip(replay.rows, replay.given, strict=True)]
    threads = []
    for n, thread in enumerate(result.threads):
        opening = _pieces(engine.tokenizer, replay.rows[n][: replay.given[n]])
        others = {other.label for other in result.threads} - {thread.label}
        marks = find_marks(words[n], others)
        if thread.finish_reason == "lattice" and thread.token_ids:
            marks.append((len(words[n]) - 1, "stop", None))
        threads.append(
            ThreadTrace(
                label=thread.label,
                given=replay.given[n],
                texts=opening + words[n],
                finish_reason=thread.finish_reason,
                tag=thread.tag,
                answer=thread.answer,
                correct=correct[n] if correct is not None else None,
                marks=[(step + replay.given[n], kind, whom) for step, kind, whom in marks],
            )
        )
    return Trace(
        prompt=result.prompt,
        model=model,
        strategy=result.strategy,
        threads=threads,
        chosen=result.chosen,
        chosen_by=result.chosen_by,
        seconds=result.seconds,
        layers=replay.layers,
        visibility=engine.config.visibility if engine.config else "",
        replay_gap=replay.gap(),
        **replay.tensors(),
    )


def find_marks(texts: Sequence[str], others: set[int]) -> list[tuple[int, str, int | None]]:
    """Where a thread cites others and where it corrects itself, as (place in `texts`, kind, label of the other).

    Args:
        texts: what each token adds to the thread's text.
        others: labels of the other threads.
    """
    ends, length = [], 0
    for text in texts:
        ends.append(length := length + len(text))
    marks: list[tuple[int, str, int | None]] = []
    for word in _MARKS.finditer("".join(texts)):
        label = word["named"] or word["finder"]
        if label is not None and int(label) not in others:
            continue
        at = word.start("finder") if word["finder"] else word.start()
        place = next(n for n, end in enumerate(ends) if at < end)
        marks.append((place, "fix" if word["fix"] else "cite", None if label is None else int(label)))
    return marks


def _pieces(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[str]:
    """What each token adds to the text."""
    detokenizer, pieces = Detokenizer(tokenizer, ()), []
    for n, token in enumerate(ids):
        detokenizer.add(token)
        pieces.append(detokenizer.take(final=n == len(ids) - 1))
    return pieces


class _Replay:
    """The second reading, and what it finds."""

    def __init__(self, engine: Engine, result: LatticeResult, layers: Sequence[int] | None) -> None:
        self.engine, self.result = engine, result
        opening = engine.config.opening if engine.config else ""
        openings = [opening_ids(engine.tokenizer, opening, thread.label) for thread in result.threads]
        self.given = [len(ids) for ids in openings]
        self.rows = [ids + thread.token_ids for ids, thread in zip(openings, result.threads, strict=True)]
        self.lengths = torch.tensor([len(row) for row in self.rows])
        self.threads, self.steps = len(self.rows), max(map(len, self.rows))
        self.prompt_ids = list(engine.tokenizer(result.prompt)["input_ids"])
        self.with_lattice = result.strategy == "lace" and engine.config is not None
        self.modules = self._modules(layers)
        self.layers = sorted(self.modules)
        heads = engine.config.num_heads if self.layers and engine.config else 0
        kept = kept_entries(len(self.layers), self.threads, heads) if self.layers else 0
        tokens, entries = int(self.lengths.sum()), self.threads * self.steps
        self.offset_N = self.lengths.cumsum(0) - self.lengths
        self.entropy_G, self.logprobs_G = torch.full((2, tokens), torch.nan)
        shape = (len(self.layers), 1 + heads, tokens, min(kept, entries))
        self.gates_YGH = torch.zeros(len(self.layers), tokens, heads, dtype=torch.float16)
        self.mass_YGHN = torch.zeros(len(self.layers), tokens, heads, self.threads, dtype=torch.uint8)
        self.entries_YVGK = torch.zeros(shape, dtype=torch.int32)
        self.weights_YVGK = torch.zeros(shape, dtype=torch.float16)
        self.first = 0
        """Step of the first token of the running pass."""

    def _modules(self, layers: Sequence[int] | None) -> dict[int, LatticeAttention]:
        """The lattice of each layer that is recorded."""
        if not self.with_lattice:
            if layers:
                raise ValueError("threads of the strategy independent read nobody: there are no layers to record")
            return {}
        found = numbered_lattices(self.engine.model)
        return {number: found[number] for number in recorded_layers(self.engine, self.threads, layers)}

    @torch.inference_mode()
    def run(self) -> None:
        """Reads the prompt once and then all threads, up to the token before the last."""
        model, config = self.engine.model, self.engine.config
        device = model.device
        prefill = DynamicCache()  # made without the config, as in the engine
        out = model(
            input_ids=torch.tensor([self.prompt_ids], device=device),
            past_key_values=prefill,
            use_cache=True,
            logits_to_keep=1,
        )
        self._take_logits(out.logits.expand(self.threads, -1, -1), -1)
        rows_N = torch.zeros(self.threads, dtype=torch.long, device=device)
        cache = RowCache(prefill, rows_N, len(self.prompt_ids) + self.steps)
        lattice_cache = new_lattice_cache(model, 1, self.threads, self.steps) if self.with_lattice else None
        widest = max(self.threads * self.steps * (config.num_heads if config else 0), out.logits.shape[-1])
        length = max(1, PASS_SIZE // (self.threads * widest))
        labels_N = torch.tensor([thread.label for thread in self.result.threads], device=device)
        tokens_NS = torch.zeros(self.threads, self.steps, dtype=torch.long)
        for row, ids in zip(tokens_NS, self.rows, strict=True):
            row[: len(ids)] = torch.tensor(ids)
        hooks = [
            module.register_forward_hook(partial(self._take_reading, place))
            for place, module in enumerate(self.modules[number] for number in self.layers)
        ]
        try:
            for first in range(0, self.steps - 1, length):
                self.first = first
                step_T = torch.arange(first, min(first + length, self.steps - 1))
                steps_NT = torch.where(step_T < self.lengths[:, None], step_T, -1).to(device)
                arguments = {
                    "steps": steps_NT,
                    "thread_ids": labels_N,
                    "lattice_rows": torch.arange(self.threads, device=device)[None],
                    "lattice_cache": lattice_cache,
                }
                out = model(
                    input_ids=tokens_NS[:, step_T].to(device),
                    # What follows a thread's end is read by nobody.
                    position_ids=torch.where(steps_NT >= 0, steps_NT + len(self.prompt_ids), 0),
                    past_key_values=cache,
                    use_cache=True,
                    **(arguments if self.with_lattice else {}),
                )
                self._take_logits(out.logits, first)
        finally:
            for hook in hooks:
                hook.remove()

    def _chosen_by(self, first: int, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The queries (Q,) of a pass that chose a token, and the places (of G) of these tokens."""
        step_NT = torch.arange(first, first + tokens).expand(self.threads, -1) + 1
        chose_NT = (step_NT < self.lengths[:, None]) & (step_NT >= torch.tensor(self.given)[:, None])
        return chose_NT.flatten().nonzero()[:, 0], (self.offset_N[:, None] + step_NT)[chose_NT]

    def _take_logits(self, logits_NTV: torch.Tensor, first: int) -> None:
        queries, places = self._chosen_by(first, logits_NTV.shape[1])
        logprobs_QV = logits_NTV.flatten(0, 1)[queries.to(logits_NTV.device)].float().log_softmax(dim=-1)
        self.entropy_G[places] = torch.special.entr(logprobs_QV.exp()).sum(dim=-1).cpu()
        tokens = self._token_ids()[places].to(logprobs_QV.device)
        self.logprobs_G[places] = logprobs_QV.gather(1, tokens[:, None])[:, 0].cpu()

    def _take_reading(
        self, place: int, module: LatticeAttention, args: tuple[torch.Tensor, ThreadLayout], output: torch.Tensor
    ) -> None:
        x_NTD, layout = args
        queries, places = self._chosen_by(self.first, x_NTD.shape[1])
        weights_HQE, gate_QH = reading_weights(module, x_NTD, layout)
        index = queries.to(x_NTD.device)
        weights_HQE, gate_QH = weights_HQE[:, index], gate_QH[index]
        weights_VQE = torch.cat((weights_HQE.mean(dim=0, keepdim=True), weights_HQE))
        mass_QHN = weights_HQE.unflatten(2, (-1, self.threads)).sum(dim=2).transpose(0, 1)
        self.gates_YGH[place, places] = gate_QH.half().cpu()
        self.mass_YGHN[place, places] = (255 * mass_QHN.clamp(max=1).sqrt()).round().byte().cpu()
        own_Q = (queries // x_NTD.shape[1]).to(x_NTD.device)
        entry_E = torch.arange(weights_VQE.shape[-1], device=x_NTD.device)
        weights_VQE.masked_fill_(entry_E % self.threads == own_Q[:, None], 0)
        kept = self.weights_YVGK.shape[-1]
        top = pad(weights_VQE, (0, max(0, kept - len(entry_E)))).topk(kept)
        self.weights_YVGK[place][:, places] = top.values.half().cpu()
        self.entries_YVGK[place][:, places] = torch.where(top.values > 0, top.indices, 0).int().cpu()

    def _token_ids(self) -> torch.Tensor:
        return torch.tensor([token for row in self.rows for token in row])

    def _decoded_logprobs(self) -> torch.Tensor:
        """As sampled, (G,); nan for given tokens."""
        return torch.tensor(
            [
                value
                for given, thread in zip(self.given, self.result.threads, strict=True)
                for value in (*[torch.nan] * given, *thread.logprobs)
            ]
        )

    def gap(self) -> float:
        gaps_G = (self._decoded_logprobs() - self.logprobs_G).abs()
        return round(float(gaps_G.nan_to_num().max()), 6)

    def tensors(self) -> dict[str, torch.Tensor]:
        small = self.threads * self.steps <= 2**16
        return {
            "token_ids_G": self._token_ids().int(),
            "logprobs_G": self._decoded_logprobs().half(),
            "entropy_G": self.entropy_G.half(),
            "gates_YGH": self.gates_YGH,
            "mass_YGHN": self.mass_YGHN,
            "entries_YVGK": self.entries_YVGK.to(torch.uint16) if small else self.entries_YVGK,
            "weights_YVGK": self.weights_YVGK,
            "seconds_S": torch.tensor(self.result.step_seconds, dtype=torch.float32),
        }


def reading_weights(
    module: LatticeAttention, x_RTD: torch.Tensor, layout: ThreadLayout
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention weights of a pass over one lattice, in float32; arguments as of `observe.read_again`.

    Returns:
        Weights (H, Q, E) of the Q = N * T queries (thread-major) on the E = S * N entries (time-major), without the
        null entry, on which the rest lies; gates (Q, H).
    """
    q_RTHK, k_LSNK, _, gate_RTH = reading_parts(module, x_RTD, layout)
    q_HQK = q_RTHK[layout.rows_LN[0]].flatten(0, 1).transpose(0, 1)
    k_EK = torch.cat((module.null_key.float()[None], k_LSNK[0].flatten(0, 1)))
    scores_HQE = q_HQK @ k_EK.T / module.config.head_dim**0.5
    weights_HQE = scores_HQE.masked_fill(~layout.seen_LQE[0], -torch.inf).softmax(dim=-1)
    return weights_HQE[:, :, 1:], gate_RTH[layout.rows_LN[0]].flatten(0, 1)
