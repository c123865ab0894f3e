// A recording as `lace.viz.trace` writes it: safetensors, with the rest as JSON in its metadata.

import { percent, type NAMES, type Heat, type View } from "./state";

export interface Mark {
  step: number;
  kind: "cite" | "fix" | "stop";
  /** Label of the other thread, where the text names it. */
  whom: number | null;
}

export interface Thread {
  label: number;
  given: number;
  texts: string[];
  finish_reason: string;
  tag: string | null;
  answer: string | null;
  correct: boolean | null;
  marks: Mark[];
  /** Place of its first token among the tokens of all threads. */
  start: number;
}

/** One entry that a token's reading rests on. */
export interface Entry {
  thread: number;
  step: number;
  weight: number;
}

/** What the columns show: a recording, or a run that still goes on. */
export interface Run {
  readonly threads: Thread[];
  readonly steps: number;
  readonly chosen: number;
  readonly chosenBy: string;
  readonly seconds: number;
  /** Numbers of the layers whose readings are known. */
  readonly layers: number[];
  /** How many heads are told apart. */
  readonly heads: number;
  /** What stands in place of the outcome as long as there is none. */
  readonly note: string | null;
  /** How far the gate stood open that a token's reading had to pass; by layer (a place in `layers`) and view. */
  gate(layer: number, view: View, thread: number, step: number): number;
  /** What a token's reading rests on most, the strongest first. */
  entries(layer: number, view: View, thread: number, step: number): Entry[];
  /** Weight of all entries of other threads together, if it is known. */
  readOfOthers(layer: number, view: View, thread: number, step: number): number | null;
  /** Between 0 and 1. */
  heat(kind: Heat, layer: number, view: View, thread: number, step: number): number;
  /** From the start of the decoding to the tokens of a step, if that is known. */
  secondsAt(step: number): number | null;
  /** Names and values of what else is known of a token. */
  facts(layer: number, thread: number, step: number): [string, string][];
}

interface Tensor {
  shape: number[];
  data: Float32Array | Uint8Array | Uint16Array | Int32Array;
}

const HALF = halfTable();
/** Attention on a thread, from the byte that holds its square root. */
const SHARE = Float32Array.from({ length: 256 }, (_, byte) => (byte / 255) ** 2);

/** The first and the last token of those that hold the letters from `from` up to `to` of all texts together. */
export function tokensOver(texts: string[], from: number, to: number): [number, number] {
  let [first, end] = [0, texts[0].length];
  while (end <= from) end += texts[++first].length;
  let last = first;
  while (end < to) end += texts[++last].length;
  return [first, last];
}

/** Values of all half-precision numbers. */
function halfTable(): Float32Array {
  const table = new Float32Array(65536);
  for (let bits = 0; bits < 65536; bits++) {
    const sign = bits & 0x8000 ? -1 : 1;
    const exponent = (bits >> 10) & 31;
    const fraction = bits & 1023;
    if (exponent === 31) table[bits] = fraction ? NaN : sign * Infinity;
    else if (exponent === 0) table[bits] = sign * fraction * 2 ** -24;
    else table[bits] = sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
  }
  return table;
}

function readTensor(kind: string, bytes: ArrayBuffer): Tensor["data"] {
  switch (kind) {
    case "F16":
      return Float32Array.from(new Uint16Array(bytes), (bits) => HALF[bits]);
    case "F32":
      return new Float32Array(bytes);
    case "U8":
      return new Uint8Array(bytes);
    case "U16":
      return new Uint16Array(bytes);
    case "I32":
      return new Int32Array(bytes);
    default:
      throw new Error(`the trace holds numbers of an unknown kind, ${kind}`);
  }
}

export class Trace implements Run {
  readonly note = null;
  readonly prompt: string;
  readonly model: string;
  readonly strategy: keyof typeof NAMES;
  readonly threads: Thread[];
  readonly chosen: number;
  readonly chosenBy: string;
  readonly seconds: number;
  readonly layers: number[];
  readonly replayGap: number;
  readonly steps: number;
  readonly heads: number;
  private readonly tensors = new Map<string, Tensor>();
  private readonly sums = new Map<string, Float64Array>();

  constructor(bytes: ArrayBuffer) {
    const length = Number(new DataView(bytes).getBigUint64(0, true));
    const header = JSON.parse(new TextDecoder().decode(new Uint8Array(bytes, 8, length)));
    for (const [name, about] of Object.entries<any>(header)) {
      if (name === "__metadata__") continue;
      const [from, to] = about.data_offsets as [number, number];
      const own = bytes.slice(8 + length + from, 8 + length + to);
      this.tensors.set(name, { shape: about.shape, data: readTensor(about.dtype, own) });
    }
    const rest = JSON.parse(header.__metadata__.lace_trace);
    let start = 0;
    this.threads = rest.threads.map((thread: any) => {
      const marks = thread.marks.map(([step, kind, whom]: [number, Mark["kind"], number | null]) => ({ step, kind, whom }));
      const placed = { ...thread, marks, start };
      start += thread.texts.length;
      return placed;
    });
    this.prompt = rest.prompt;
    this.model = rest.model;
    this.strategy = rest.strategy;
    this.chosen = rest.chosen;
    this.chosenBy = rest.chosen_by;
    this.seconds = rest.seconds;
    this.layers = rest.layers;
    this.replayGap = rest.replay_gap;
    this.steps = Math.max(...this.threads.map((thread) => thread.texts.length));
    this.heads = this.tensor("gates_YGH").shape[2];
  }

  private tensor(name: string): Tensor {
    const found = this.tensors.get(name);
    if (!found) throw new Error(`the trace lacks ${name}`);
    return found;
  }

  /** Whether a token was chosen by the model, not given. */
  private chosenByModel(thread: number, step: number): boolean {
    return step >= this.threads[thread].given;
  }

  heat(kind: Heat, layer: number, view: View, thread: number, step: number): number {
    if (!this.chosenByModel(thread, step)) return 0;
    if (kind === "entropy") return this.entropy(thread, step) / 2;
    if (kind === "surprise") return -this.logprob(thread, step) / 4;
    if (layer < 0) return 0;
    return kind === "gate"
      ? this.gate(layer, { ...view, gated: false }, thread, step)
      : this.readOfOthers(layer, view, thread, step);
  }

  secondsAt(step: number): number {
    return this.tensor("seconds_S").data[step];
  }

  facts(layer: number, thread: number, step: number): [string, string][] {
    if (!this.chosenByModel(thread, step)) return [["given", "part of the opening, not chosen"]];
    const logprob = this.logprob(thread, step);
    const facts: [string, string][] = [
      ["probability", `${percent(Math.exp(logprob))} (-log: ${(-logprob).toFixed(2)} nats)`],
      ["entropy", `${this.entropy(thread, step).toFixed(2)} nats`],
    ];
    if (layer < 0) return facts;
    const gates = Array.from(this.gates(layer, thread, step), (gate) => gate.toFixed(2));
    const shares = gates.map((_, head) => this.attention(layer, head + 1, thread, step).toFixed(2));
    return [
      ...facts,
      ["gates by head", gates.join(" ")],
      ["attends to others", percent(this.attention(layer, 0, thread, step))],
      ["the same by head", shares.join(" ")],
    ];
  }

  private logprob(thread: number, step: number): number {
    return this.tensor("logprobs_G").data[this.threads[thread].start + step];
  }

  private entropy(thread: number, step: number): number {
    return this.tensor("entropy_G").data[this.threads[thread].start + step];
  }

  /** Gates of all heads of one layer (a place in `layers`). */
  private gates(layer: number, thread: number, step: number): ArrayLike<number> {
    const { shape, data } = this.tensor("gates_YGH");
    const from = (layer * shape[1] + this.threads[thread].start + step) * shape[2];
    return data.subarray(from, from + shape[2]);
  }

  /** Of what is weighted by the gate already, 1; else of one head, or the mean of all. */
  gate(layer: number, view: View, thread: number, step: number): number {
    if (view.gated) return 1;
    const gates = this.gates(layer, thread, step);
    if (view.head > 0) return gates[view.head - 1];
    let sum = 0;
    for (let head = 0; head < gates.length; head++) sum += gates[head];
    return sum / gates.length;
  }

  /** Weight of each thread, of the mean of all heads or of one head. */
  private mass(layer: number, view: View, thread: number, step: number): Float64Array {
    const { shape, data } = this.tensor("mass_YGHN");
    const [, tokens, heads, size] = shape;
    const from = (layer * tokens + this.threads[thread].start + step) * heads * size;
    const shares = new Float64Array(size);
    const [first, end] = view.head > 0 ? [view.head - 1, view.head] : [0, heads];
    const gates = this.gates(layer, thread, step);
    for (let head = first; head < end; head++) {
      const part = (view.gated ? gates[head] : 1) / (end - first);
      for (let other = 0; other < size; other++) shares[other] += part * SHARE[data[from + head * size + other]];
    }
    return shares;
  }

  readOfOthers(layer: number, view: View, thread: number, step: number): number {
    return this.mass(layer, view, thread, step).reduce((sum, share, other) => (other === thread ? sum : sum + share), 0);
  }

  private attention(layer: number, head: number, thread: number, step: number): number {
    return this.readOfOthers(layer, { head, gated: false }, thread, step);
  }

  entries(layer: number, view: View, thread: number, step: number): Entry[] {
    if (!view.gated) return this.kept(layer, view.head, thread, step);
    const gates = this.gates(layer, thread, step);
    if (view.head > 0) return this.kept(layer, view.head, thread, step, gates[view.head - 1]);
    // The mean of what comes through each head, as far as its entries were kept.
    const sums = new Map<string, Entry>();
    for (let head = 1; head <= gates.length; head++) {
      for (const entry of this.kept(layer, head, thread, step, gates[head - 1] / gates.length)) {
        const key = `${entry.thread} ${entry.step}`;
        const sum = sums.get(key);
        if (sum) sum.weight += entry.weight;
        else sums.set(key, entry);
      }
    }
    return [...sums.values()].sort((a, b) => b.weight - a.weight);
  }

  /** The entries that the recording holds, of the mean over heads (0) or of head h (h + 1). */
  private kept(layer: number, head: number, thread: number, step: number, part = 1): Entry[] {
    const { shape, data } = this.tensor("entries_YVGK");
    const weights = this.tensor("weights_YVGK").data;
    const from = ((layer * shape[1] + head) * shape[2] + this.threads[thread].start + step) * shape[3];
    const found: Entry[] = [];
    for (let place = from; place < from + shape[3]; place++) {
      if (weights[place] === 0) continue;
      const entry = data[place];
      found.push({
        thread: entry % this.threads.length,
        step: Math.floor(entry / this.threads.length),
        weight: part * weights[place],
      });
    }
    return found;
  }

  /** Weight of the first of `kept`. */
  private topWeight(layer: number, head: number, thread: number, step: number): number {
    const { shape, data } = this.tensor("weights_YVGK");
    return data[((layer * shape[1] + head) * shape[2] + this.threads[thread].start + step) * shape[3]];
  }

  /** Mean weight of each thread (column) in what each thread (row) reads, over the steps from..to. */
  matrix(layer: number, view: View, from: number, to: number): number[][] {
    const size = this.threads.length;
    const sums = this.runningSums(layer, view);
    return this.threads.map((thread, row) => {
      const first = Math.max(from, thread.given);
      const end = Math.min(to + 1, thread.texts.length);
      return Array.from({ length: size }, (_, column) => {
        if (end <= first) return NaN;
        const cell = (step: number) => sums[(step * size + row) * size + column];
        return (cell(end) - cell(first)) / (end - first);
      });
    });
  }

  /** For each step, the weights of all steps before it, by reading and read thread. */
  private runningSums(layer: number, view: View): Float64Array {
    const key = `${layer} ${view.head} ${view.gated}`;
    const known = this.sums.get(key);
    if (known) return known;
    const size = this.threads.length;
    const sums = new Float64Array((this.steps + 1) * size * size);
    for (let step = 0; step < this.steps; step++) {
      sums.copyWithin((step + 1) * size * size, step * size * size, (step + 1) * size * size);
      for (let row = 0; row < size; row++) {
        if (step >= this.threads[row].texts.length) continue;
        const mass = this.mass(layer, view, row, step);
        for (let column = 0; column < size; column++) {
          sums[((step + 1) * size + row) * size + column] += mass[column];
        }
      }
    }
    this.sums.set(key, sums);
    return sums;
  }

  /** The layer (a place in `layers`) with most attention on single entries behind open gates. */
  busiestLayer(): number {
    const sums = this.layers.map((_, layer) => {
      let sum = 0;
      this.threads.forEach((thread, n) => {
        for (let step = thread.given; step < thread.texts.length; step++) {
          const gates = this.gates(layer, n, step);
          for (let head = 0; head < gates.length; head++) sum += gates[head] * this.topWeight(layer, head + 1, n, step);
        }
      });
      return sum;
    });
    return sums.indexOf(Math.max(...sums));
  }
}

/** The traces that stand in the page, base64 of gzip. */
export async function tracesOfPage(): Promise<Trace[]> {
  const blocks = [...document.querySelectorAll<HTMLScriptElement>("script.trace")];
  return Promise.all(
    blocks.map(async (block) => {
      const text = atob(block.textContent!.trim());
      const bytes = new Uint8Array(text.length);
      for (let place = 0; place < text.length; place++) bytes[place] = text.charCodeAt(place);
      const opened = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
      return new Trace(await new Response(opened).arrayBuffer());
    }),
  );
}
