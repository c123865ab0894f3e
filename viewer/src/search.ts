// Finds a text in all threads, also where it goes over several tokens.

import { el } from "./dom";
import type { Pane } from "./pane";
import { tokensOver } from "./trace";

interface Hit {
  pane: number;
  thread: number;
  step: number;
}

export class Search {
  readonly element: HTMLElement;
  private readonly box = el("input", {
    type: "search",
    placeholder: "Search",
    "aria-label": "Search the threads",
    title: "Enter goes to the next place, Shift and Enter to the one before",
  });
  private readonly count = el("output", { class: "faint", "aria-live": "polite" });
  private hits: Hit[] = [];
  /** The hit that was gone to, -1 before the first. */
  private at = -1;

  constructor(
    private readonly panes: Pane[],
    go: (pane: number, thread: number, step: number) => void,
    private readonly refresh: () => void,
  ) {
    this.box.addEventListener("input", () => this.find());
    this.box.addEventListener("keydown", (event) => {
      const count = this.hits.length;
      if (event.key !== "Enter" || count === 0) return;
      this.at = event.shiftKey ? (Math.max(0, this.at) + count - 1) % count : (this.at + 1) % count;
      this.count.textContent = ` ${this.at + 1} of ${count}`;
      const hit = this.hits[this.at];
      go(hit.pane, hit.thread, hit.step);
    });
    this.element = el("span", { class: "search" }, this.box, this.count);
  }

  focus(): void {
    this.box.focus();
    this.box.select();
  }

  private find(): void {
    const wanted = this.box.value.toLowerCase();
    this.hits = [];
    this.at = -1;
    this.panes.forEach((pane, number) => {
      pane.hits = new Set();
      if (wanted === "") return;
      pane.trace.threads.forEach((thread, n) => {
        // Each by itself: a small letter may be longer than its capital.
        const texts = thread.texts.map((text) => text.toLowerCase());
        const text = texts.join("");
        for (let at = text.indexOf(wanted); at >= 0; at = text.indexOf(wanted, at + wanted.length)) {
          const [step, last] = tokensOver(texts, at, at + wanted.length);
          this.hits.push({ pane: number, thread: n, step });
          for (let place = step; place <= last; place++) pane.hits.add(thread.start + place);
        }
      });
    });
    this.hits.sort((a, b) => a.pane - b.pane || a.step - b.step || a.thread - b.thread);
    this.count.textContent = wanted === "" ? "" : ` ${this.hits.length} found`;
    this.refresh();
  }
}
