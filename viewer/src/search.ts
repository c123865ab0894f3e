// Finds a text in all threads, also where it goes over several tokens.

import { el } from "./dom";
import type { Pane } from "./pane";

interface Hit {
  pane: number;
  thread: number;
  step: number;
}

export class Search {
  readonly element: HTMLElement;
  private readonly box = el("input", { type: "search", placeholder: "Search", "aria-label": "Search the threads" });
  private readonly count = el("output", { class: "faint", "aria-live": "polite" });
  private hits: Hit[] = [];
  private next = 0;

  constructor(
    private readonly panes: Pane[],
    go: (pane: number, thread: number, step: number) => void,
    private readonly refresh: () => void,
  ) {
    this.box.addEventListener("input", () => this.find());
    this.box.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || this.hits.length === 0) return;
      const hit = this.hits[this.next];
      this.next = (this.next + 1) % this.hits.length;
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
    this.next = 0;
    this.panes.forEach((pane, number) => {
      pane.hits = new Set();
      if (wanted === "") return;
      pane.trace.threads.forEach((thread, n) => {
        const text = thread.texts.join("").toLowerCase();
        let step = 0;
        let end = thread.texts[0]?.length ?? 0;
        for (let at = text.indexOf(wanted); at >= 0; at = text.indexOf(wanted, at + wanted.length)) {
          while (end <= at) end += thread.texts[++step].length;
          this.hits.push({ pane: number, thread: n, step });
          // All tokens that the hit goes over.
          let [last, reach] = [step, end];
          while (reach < at + wanted.length) reach += thread.texts[++last].length;
          for (let place = step; place <= last; place++) pane.hits.add(thread.start + place);
        }
      });
    });
    this.hits.sort((a, b) => a.pane - b.pane || a.step - b.step || a.thread - b.thread);
    this.count.textContent = wanted === "" ? "" : ` ${this.hits.length} found`;
    this.refresh();
  }
}
