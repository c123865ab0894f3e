// What stands beside the columns: the token in focus, and who reads whom.

import { el, foreign, option } from "./dom";
import { shown, type Pane } from "./pane";
import { headOf, inTime, markInWords, percent, windowOf, withEnd, type Span, type State } from "./state";
import type { Run } from "./trace";

/** Threads that the matrix has room for with cells of three digits. */
const DENSE = 8;
/** Arcs that are told in words. */
const TOLD = 3;
/** The window that is none of the preset ones. */
const CHOSEN = "chosen";

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
    const seconds = pane.trace.secondsAt(focus.step);
    const when = seconds === null ? "" : `, after ${inTime(seconds)}`;
    const head = `Thread ${thread.label}, step ${focus.step}${when}: ${shown(thread, focus.step).slice(0, 200)}.`;
    const marks = thread.marks.filter((mark) => mark.step === focus.step).map((mark) => ` It ${markInWords(mark)}.`);
    const arcs = pane.arcs();
    if (arcs.length === 0) return `${head}${marks.join("")} ${this.noArcs(pane)}`;
    const reads = arcs.slice(0, TOLD).map((arc) => {
      const other = pane.trace.threads[arc.thread];
      return `${percent(arc.weight)} thread ${other.label}, step ${arc.step}, ${shown(other, arc.step).slice(0, 40)}`;
    });
    const more = arcs.length > TOLD ? `; and ${arcs.length - TOLD} more` : "";
    const gate = arcs[0].gate < 1 ? `, through a gate that is ${percent(arcs[0].gate)} open` : "";
    return `${head}${marks.join("")} It reads ${reads.join("; ")}${more}${gate}.`;
  }

  /** Weight of what no arc shows, if it is known. */
  private rest(pane: Pane<Run>): number | null {
    const { thread, step } = this.state.focus!;
    if (pane.layer < 0 || step < pane.trace.threads[thread].given) return null;
    const all = pane.trace.readOfOthers(pane.layer, this.state.view, thread, step);
    return all && Math.max(0, all - pane.arcs().reduce((sum, arc) => sum + arc.weight, 0));
  }

  private noArcs(pane: Pane<Run>): string {
    if (pane.trace.layers.length === 0) return "These threads do not read each other.";
    const { layer, view } = this.state;
    if (pane.layer < 0) return `Layer ${layer}${view.head ? `, ${headOf(view)}` : ""} was not recorded here.`;
    const rest = this.rest(pane);
    return rest ? `It reads no token with 1 % or more, all together with ${percent(rest)}.` : "It reads nobody.";
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
    const seconds = trace.secondsAt(focus.step);
    const place: [string, string][] = [["thread", `${thread.label}, step ${focus.step}`]];
    if (seconds !== null) place.push(["written", `after ${inTime(seconds)}`]);
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
    const rest = this.rest(pane);
    if (reads.childElementCount && rest !== null) {
      reads.append(el("li", { class: "rest", "data-weight": rest }, `the rest, ${percent(rest)}`));
    }
    const marks = thread.marks.filter((mark) => mark.step === focus.step);
    this.body.replaceChildren(
      el("p", { class: "text" }, foreign(thread.texts[focus.step] || shown(thread, focus.step))),
      ...marks.map((mark) => el("p", {}, el("span", { class: `sign ${mark.kind}` }), markInWords(mark))),
      listed(place),
      reads.childElementCount ? reads : el("p", { class: "faint" }, this.noArcs(pane)),
      listed(trace.facts(pane.layer, focus.thread, focus.step)),
    );
  }
}

const listed = (facts: [string, string][]): HTMLElement =>
  el("dl", {}, ...facts.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]));

export class MatrixPanel {
  readonly element: HTMLElement;
  private readonly parts: { pane: Pane; cells: HTMLTableCellElement[][] }[];
  private readonly caption = el("p", { class: "faint" });
  private readonly preset = el(
    "select",
    { "aria-label": "Window" },
    ...[0, 8, 32, 128].map((steps) => option(steps, steps ? `last ${steps} steps` : "all so far")),
    option(CHOSEN, "chosen steps"),
  );
  private readonly from: HTMLInputElement;
  private readonly to: HTMLInputElement;
  private readonly clear = el("button", { type: "button" }, "Clear");
  private readonly ends: HTMLElement;
  private drawn = "";

  /**
   * @param steps there are.
   * @param choose is told which steps the matrix shall be about; null for those of the preset window.
   */
  constructor(
    panes: Pane[],
    private readonly state: State,
    steps: number,
    choose: (span: Span | null) => void,
  ) {
    const box = (label: string) => el("input", { type: "number", min: 0, max: steps - 1, "aria-label": label });
    [this.from, this.to] = [box("Window from step"), box("Window to step")];
    this.ends = el(
      "div",
      { class: "controls ends", role: "group", "aria-label": "Chosen steps" },
      el("span", { "aria-hidden": "true" }, "from"),
      this.from,
      el("span", { "aria-hidden": "true" }, "to"),
      this.to,
      this.clear,
    );
    const tables: HTMLElement[] = [];
    this.parts = panes
      .filter((pane) => pane.trace.layers.length > 0)
      .map((pane) => {
        const { threads } = pane.trace;
        const cells = threads.map(() => threads.map(() => el("td", {})));
        const labels = threads.map((thread) => el("th", { scope: "col" }, String(thread.label)));
        const dense = threads.length > DENSE ? " dense" : "";
        const wide = threads.some((thread) => thread.label > 99) ? " wide" : "";
        tables.push(
          el(
            "div",
            { class: `matrix${dense}${wide}`, tabindex: 0, role: "region", "aria-label": `Attention by thread. ${pane.inWords()}` },
            el(
              "table",
              {},
              el("caption", { class: "hidden" }, "What each thread (row) reads of each other thread (column), in %"),
              el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "reads"), ...labels)),
              el(
                "tbody",
                {},
                ...threads.map((thread, n) => el("tr", {}, el("th", { scope: "row" }, String(thread.label)), ...cells[n])),
              ),
            ),
          ),
        );
        tables.at(-1)!.style.setProperty("--columns", String(threads.length));
        return { pane, cells };
      });
    this.preset.addEventListener("change", () => {
      const { value } = this.preset;
      if (value !== CHOSEN) state.window = Number(value);
      choose(value === CHOSEN ? windowOf(state) : null);
    });
    for (const [box, end] of [[this.from, "from"], [this.to, "to"]] as const) {
      box.addEventListener("change", () => {
        if (box.value === "") box.value = String(windowOf(state)[end]);
        else choose(withEnd(windowOf(state), end, box.valueAsNumber));
      });
    }
    this.clear.addEventListener("click", () => {
      choose(null);
      this.preset.focus(); // the button is gone
    });
    this.element = el(
      "section",
      { class: "who", "aria-label": "Who reads whom" },
      el("div", { class: "controls" }, el("h2", {}, "Who reads whom"), tables.length > 0 && this.preset),
      ...(tables.length
        ? [this.ends, this.caption, ...tables]
        : [el("p", { class: "faint" }, "These threads do not read each other.")]),
    );
  }

  draw(): void {
    const { span, window, layer, view } = this.state;
    const { from, to } = windowOf(this.state);
    const key = JSON.stringify([from, to, span, window, layer, view]);
    if (key === this.drawn) return;
    this.drawn = key;
    this.preset.value = span ? CHOSEN : String(window);
    this.ends.hidden = span === null;
    [this.from.value, this.to.value] = [String(from), String(to)];
    const what = view.gated ? "Attention × gate" : "Attention";
    this.caption.textContent = `${what}, %, steps ${from} to ${to}, layer ${layer}, ${headOf(view)}; rows read columns.`;
    for (const { pane, cells } of this.parts) {
      // A layer or head that only the other recording has shows as dashes.
      const shares = pane.layer < 0 ? null : pane.trace.matrix(pane.layer, view, from, to);
      const tenths = cells.length > DENSE ? 0.00995 : 0.0995;
      cells.forEach((row, n) =>
        row.forEach((cell, m) => {
          const share = shares?.[n][m] ?? NaN;
          const none = Number.isNaN(share) || (n === m && share === 0);
          cell.textContent = none ? "–" : (100 * share).toFixed(share < tenths ? 1 : 0);
          cell.style.setProperty("--share", none ? "0" : String(Math.min(1, share * (view.gated ? 6 : 1.5))));
        }),
      );
    }
  }
}
