// What the whole page agrees on; panes and panels draw it and change it.

export type Heat = "gate" | "read" | "entropy" | "surprise";

export interface Focus {
  pane: number;
  thread: number;
  step: number;
}

export interface State {
  /** Number of a decoder layer, not its place. */
  layer: number;
  /** 0 is the mean over heads, h + 1 head h. */
  view: number;
  heat: Heat;
  /** Playhead: the last step that is written. */
  now: number;
  /** For how many steps the strongest arcs stay while time passes. */
  trail: number;
  /** How many steps up to `now` the matrix is about; 0 for all. */
  window: number;
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

export const NAMES = { lace: "LACE: threads read each other", independent: "Independent threads" };

export const percent = (share: number): string => `${(100 * share).toFixed(share < 0.0995 ? 1 : 0)} %`;
