// What the whole page agrees on; panes and panels draw it and change it.

import type { Mark } from "./trace";

export type Heat = "gate" | "read" | "entropy" | "surprise";

/** What is taken for the weight of a reading. */
export interface View {
  /** 0 is the mean over heads, h + 1 head h. */
  head: number;
  /** Whether it is the attention times the gate, what really comes through, or the attention alone. */
  gated: boolean;
}

export interface Focus {
  pane: number;
  thread: number;
  step: number;
}

/** Which heads that is, in words. */
export const headOf = ({ head }: View): string => (head > 0 ? `head ${head - 1}` : "mean of all heads");

/** Steps, the first and the last included. */
export interface Span {
  from: number;
  to: number;
}

export interface State {
  /** Number of a decoder layer, not its place. */
  layer: number;
  view: View;
  heat: Heat;
  /** Playhead: the last step that is written. */
  now: number;
  /** For how many steps the strongest arcs stay while time passes. */
  trail: number;
  /** How many steps up to `now` the matrix is about; 0 for all. */
  window: number;
  /** The steps that it is about instead, where somebody has chosen them. */
  span: Span | null;
  playing: boolean;
  focus: Focus | null;
  /** Whether the focus was chosen, by click or key, and stays where it is when the pointer moves. */
  pinned: boolean;
}

export const HEATS: Record<Heat, string> = {
  gate: "gate",
  read: "read of other threads",
  entropy: "entropy, nats",
  surprise: "-log probability, nats",
};

/** What a thread does where it is marked. */
export const MARKS = {
  cite: "cites another thread",
  fix: "corrects itself",
  stop: "was closed, since another had finished",
};

/** What is told of a token with that mark. */
export const markInWords = ({ kind, whom }: Mark): string => (whom === null ? MARKS[kind] : `cites thread ${whom}`);

export const NAMES = { lace: "LACE: threads read each other", independent: "Independent threads" };

/** What stands above the threads of a run, with what independent ones are compared with. */
export const titleOf = (strategy: keyof typeof NAMES, model: string): string =>
  strategy === "lace" ? NAMES.lace : `${NAMES.independent}: ${model}, lattice off`;

/** The steps from..to that the matrix is about. */
export function windowOf({ now, window, span }: State): Span {
  return span ?? { from: window ? Math.max(0, now - window + 1) : 0, to: now };
}

/** The same steps but for one end; the other gives way where it must. */
export function withEnd(span: Span, end: keyof Span, step: number): Span {
  const [from, to] = end === "from" ? [step, span.to] : [span.from, step];
  return from <= to ? { from, to } : { from: step, to: step };
}

/** Seconds, as fine as steps are apart. */
export const inTime = (seconds: number): string => `${seconds.toFixed(seconds < 10 ? 3 : 2)} s`;

export const percent = (share: number): string => `${(100 * share).toFixed(share < 0.0995 ? 1 : 0)} %`;
