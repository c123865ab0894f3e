// A run that still goes on: what was told of it, shown step by step at a pace that the eye can follow.

import type { Report, Told, TokenTold } from "./api";
import { percent } from "./state";
import type { Entry, Run, Thread } from "./trace";

/** Steps a second that are shown, if the server is that fast; more if much has piled up. */
const PACE = 25;

export class LiveRun implements Run {
  threads: Thread[] = [];
  chosen = 0;
  chosenBy = "";
  seconds = 0;
  /** Why nothing comes, if something is wrong. */
  trouble: string | null = null;
  /** Seconds for which the server has said nothing; 0 for a few. */
  silence = 0;
  /** The recording, as the server has sent it. */
  trace: string | null = null;
  /** One place, for all layers together. */
  readonly layers: number[];
  readonly heads = 0;
  private tokens: TokenTold[][] = [];
  private ends: TokenTold[] = [];
  private report: Report | null = null;
  private exact = 0;
  private progress = "waiting for the model";
  private finished = false;

  constructor(
    readonly strategy: "lace" | "independent",
    private readonly count: number,
  ) {
    this.layers = strategy === "lace" ? [0] : [];
    this.restart();
  }

  /** Forgets what was told, since all of it will be told again. */
  restart(): void {
    this.threads = Array.from({ length: this.count }, (_, n) => ({
      label: 0,
      given: 0,
      texts: [],
      finish_reason: "",
      tag: null,
      answer: null,
      correct: null,
      marks: [],
      start: n * 1e6,
    }));
    this.tokens = this.threads.map(() => []);
    this.ends = [];
    this.report = null;
    this.trace = null;
    this.trouble = null;
  }

  take(told: Told): void {
    if ("trace" in told) this.trace = told.trace;
    else if ("chosen" in told) this.report = told;
    else if (told.step === null) this.ends.push(told);
    else this.tokens[told.thread].push(told);
  }

  get note(): string | null {
    if (this.finished) return null;
    const progress = this.trouble ?? this.progress;
    return this.silence ? `${progress}; the server has been silent for ${this.silence} s` : progress;
  }

  /** Steps that are shown. */
  get steps(): number {
    return Math.max(0, ...this.threads.map((thread) => thread.texts.length));
  }

  /** Lets time pass; returns whether there is more to come for which nothing needs to be told. */
  advance(seconds: number): boolean {
    const known = Math.max(0, ...this.tokens.map((told) => told.length));
    this.exact = Math.min(known, this.exact + seconds * Math.max(PACE, known - this.exact));
    const shown = Math.floor(this.exact);
    this.threads.forEach((thread, n) => {
      for (const token of this.tokens[n].slice(thread.texts.length, shown)) {
        thread.label = token.label;
        thread.texts.push(token.delta);
        if (token.given) thread.given++;
        if (token.finish_reason) thread.finish_reason = token.finish_reason;
      }
    });
    if (shown) this.progress = `step ${shown}, ${this.threads.reduce((sum, { texts }) => sum + texts.length, 0)} tokens`;
    if (shown < known) return true;
    if (this.report) this.finish(this.report);
    return false;
  }

  private finish(report: Report): void {
    for (const { thread, delta } of this.ends.splice(0)) {
      const { texts, marks } = this.threads[thread];
      if (texts.length === 0) continue;
      texts[texts.length - 1] += delta;
      marks.push({ step: texts.length - 1, kind: "stop", whom: null });
    }
    report.threads.forEach(({ label, tag, answer, correct, finish_reason }, n) =>
      Object.assign(this.threads[n], { label, tag, answer, correct, finish_reason }),
    );
    this.chosen = report.chosen;
    this.chosenBy = report.chosen_by;
    this.seconds = report.seconds;
    this.finished = true;
  }

  gate(): number {
    return 1; // weights are those behind the gate
  }

  entries(_layer: number, _view: unknown, thread: number, step: number): Entry[] {
    return this.tokens[thread][step]?.exchanges ?? [];
  }

  readOfOthers(): null {
    return null; // the strongest are told alone
  }

  heat(_kind: string, _layer: number, view: unknown, thread: number, step: number): number {
    return this.entries(0, view, thread, step).reduce((sum, entry) => sum + entry.weight, 0);
  }

  secondsAt(): null {
    return null; // the recording tells it
  }

  facts(_layer: number, thread: number, step: number): [string, string][] {
    if (step < this.threads[thread].given) return [["given", "part of the opening, not chosen"]];
    return this.layers.length ? [["strongest readings", percent(this.heat("", 0, null, thread, step))]] : [];
  }
}
