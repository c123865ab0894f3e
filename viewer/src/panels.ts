// What stands beside the columns: the token in focus, and who reads whom.

import { el, foreign } from "./dom";
import { shown, type Pane } from "./pane";
import { MARKS, percent, type State } from "./state";
import type { Run } from "./trace";

/** Arcs that are told in words. */
const TOLD = 3;

export class TokenPanel {
  readonly element: HTMLElement;
  private readonly body = el("div", {});
  /** Describes the columns to a screen reader, which cannot see what is drawn in them. */
  private readonly words = el("p", { id: "token-in-words", class: "hidden" });
  private drawn = "";

  constructor(
    private readonly panes: Pane<Run>[],
    private readonly state: State,
    private readonly go: (pane: number, thread: number, step: number) => void,
  ) {
    this.element = el("section", { class: "token", "aria-label": "Token" }, el("h2", {}, "Token"), this.body, this.words);
  }

  /** The token in focus and its readings, for a screen reader. */
  inWords(): string {
    const { focus } = this.state;
    if (!focus) return "";
    const pane = this.panes[focus.pane];
    const thread = pane.trace.threads[focus.thread];
    const head = `Thread ${thread.label}, step ${focus.step}: ${shown(thread, focus.step).slice(0, 200)}.`;
    const marks = thread.marks.filter((mark) => mark.step === focus.step).map((mark) => ` It ${MARKS[mark.kind]}.`);
    const arcs = pane.arcs();
    if (arcs.length === 0) return `${head}${marks.join("")} It reads nobody.`;
    const reads = arcs.slice(0, TOLD).map((arc) => {
      const other = pane.trace.threads[arc.thread];
      return `${percent(arc.weight)} thread ${other.label}, step ${arc.step}, ${shown(other, arc.step).slice(0, 40)}`;
    });
    const more = arcs.length > TOLD ? `; and ${arcs.length - TOLD} more` : "";
    const gate = arcs[0].gate < 1 ? `, through a gate that is ${percent(arcs[0].gate)} open` : "";
    return `${head}${marks.join("")} It reads ${reads.join("; ")}${more}${gate}.`;
  }

  draw(): void {
    const { focus, layer, view } = this.state;
    const key = JSON.stringify([focus, layer, view]);
    if (key === this.drawn) return;
    this.drawn = key;
    this.words.textContent = this.inWords();
    if (!focus) {
      this.body.replaceChildren(el("p", { class: "faint" }, "Point at a token or tap it, or move to one with the arrow keys."));
      return;
    }
    const pane = this.panes[focus.pane];
    const { trace } = pane;
    const thread = trace.threads[focus.thread];
    const facts = el("dl", {});
    for (const [name, value] of [
      ["thread", `${thread.label}, step ${focus.step}`],
      ...trace.facts(pane.layer, focus.thread, focus.step),
    ]) {
      facts.append(el("dt", {}, name), el("dd", {}, value));
    }
    const reads = el("ol", { class: "reads", "aria-label": "What it reads, the most first" });
    for (const arc of pane.arcs()) {
      const other = trace.threads[arc.thread];
      const button = el(
        "button",
        { type: "button", "data-thread": arc.thread, "data-step": arc.step, "data-weight": arc.weight, "data-gate": arc.gate },
        el("b", {}, percent(arc.weight)),
        ` thread ${other.label}, step ${arc.step}: `,
        foreign(shown(other, arc.step).slice(0, 200)),
      );
      button.addEventListener("click", () => this.go(focus.pane, arc.thread, arc.step));
      reads.append(el("li", {}, button));
    }
    this.body.replaceChildren(
      el("p", { class: "text" }, foreign(thread.texts[focus.step] || shown(thread, focus.step))),
      facts,
      ...(reads.childElementCount
        ? [reads]
        : [el("p", { class: "faint" }, pane.layer < 0 ? "These threads do not read each other." : "It reads nobody.")]),
    );
  }
}

export class MatrixPanel {
  readonly element: HTMLElement;
  private readonly parts: { pane: Pane; cells: HTMLTableCellElement[][] }[];
  private readonly caption = el("p", { class: "faint" });
  private drawn = "";

  constructor(
    panes: Pane[],
    private readonly state: State,
  ) {
    const tables: HTMLElement[] = [];
    this.parts = panes
      .filter((pane) => pane.trace.layers.length > 0)
      .map((pane) => {
        const { threads } = pane.trace;
        const cells = threads.map(() => threads.map(() => el("td", {})));
        const labels = threads.map((thread) => el("th", { scope: "col" }, String(thread.label)));
        tables.push(
          el(
            "div",
            { class: "matrix", tabindex: 0, role: "region", "aria-label": `Attention by thread. ${pane.inWords()}` },
            el(
              "table",
              {},
              el("caption", { class: "hidden" }, "Attention of each thread (row) on each other thread (column), in %"),
              el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "reads"), ...labels)),
              el(
                "tbody",
                {},
                ...threads.map((thread, n) => el("tr", {}, el("th", { scope: "row" }, String(thread.label)), ...cells[n])),
              ),
            ),
          ),
        );
        return { pane, cells };
      });
    const span = el(
      "select",
      {},
      ...[0, 8, 32, 128].map((steps) => el("option", { value: steps }, steps ? `last ${steps} steps` : "all so far")),
    );
    span.addEventListener("change", () => {
      state.window = Number(span.value);
      this.draw();
    });
    this.element = el(
      "section",
      { class: "who", "aria-label": "Who reads whom" },
      el("h2", {}, "Who reads whom"),
      ...(tables.length
        ? [el("label", {}, "Window ", span), this.caption, ...tables]
        : [el("p", { class: "faint" }, "These threads do not read each other.")]),
    );
  }

  draw(): void {
    const { now, window, layer, view } = this.state;
    const key = JSON.stringify([now, window, layer, view]);
    if (key === this.drawn) return;
    this.drawn = key;
    const from = window ? Math.max(0, now - window + 1) : 0;
    const heads = view > 0 ? `head ${view - 1}` : "mean of all heads";
    this.caption.textContent = `Attention in %, steps ${from} to ${now}, layer ${layer}, ${heads}; rows read columns.`;
    for (const { pane, cells } of this.parts) {
      if (pane.layer < 0) continue;
      pane.trace.matrix(pane.layer, view, from, now).forEach((row, n) =>
        row.forEach((share, m) => {
          const cell = cells[n][m];
          const none = Number.isNaN(share) || (n === m && share === 0);
          cell.textContent = none ? "–" : (100 * share).toFixed(share < 0.0995 ? 1 : 0);
          cell.style.setProperty("--share", none ? "0" : String(Math.min(1, share * 1.5)));
        }),
      );
    }
  }
}


