// The threads of one run as columns on a common time axis, drawn on a canvas as large as what is seen of them.

import { el, foreign } from "./dom";
import { percent, type Focus, type State } from "./state";
import { tokensOver, type Entry, type Mark, type Run, type Thread, type Trace } from "./trace";

const ROW = 18;
const GUTTER = 44;
const STRIP = 5;
/** A tag, `[[success]]`, is whole. */
const NARROWEST = 108;
const WIDEST = 260;
const FONT = '12px ui-monospace, "SF Mono", "DejaVu Sans Mono", Menlo, Consolas, monospace';
/** Arcs below this weight are not drawn. */
const FAINT = 0.01;
/** While time passes, arcs of the newest tokens from this product of weight and gate on. */
const STRONG = 0.05;
/** So many of them at most. */
const MOST_ARCS = 80;
/** Colours of read threads (Okabe and Ito); which thread it is also shows by where the arc ends. */
const THREAD_COLOURS = ["#e69f00", "#56b4e9", "#009e73", "#cc79a7", "#d55e00", "#0072b2"];
/** Of the first six threads, the next six, and so on. */
const THREAD_DASHES = [[], [8, 4], [2, 3]];
const MARK_COLOURS: Record<Mark["kind"], string> = { cite: "#56b4e9", fix: "#e69f00", stop: "#d55e00" };

export interface Arc extends Entry {
  /** How far the gate stood open that this reading had to pass. */
  gate: number;
  from: { thread: number; step: number };
  /** 1, and less if it is about to go. */
  fresh: number;
}

export interface Handlers {
  hover(at: { thread: number; step: number } | null): void;
  pick(at: { thread: number; step: number }): void;
  key(event: KeyboardEvent): void;
}

interface Colours {
  back: string;
  alternate: string;
  chosen: string;
  verified: string;
  right: string;
  wrong: string;
  text: string;
  faint: string;
  line: string;
  heat: string;
  hit: string;
  accent: string;
}

/** What a token looks like in one line. */
export function shown(thread: Thread, step: number): string {
  const text = thread.texts[step];
  if (text === "") return step === thread.texts.length - 1 ? "∎" : "·";
  return text.replace(/\n/g, "⏎").replace(/\t/g, "⇥").replace(/^ (?=.)/, "");
}

export class Pane<Shown extends Run = Trace> {
  readonly element: HTMLElement;
  readonly scroller: HTMLElement;
  hits = new Set<number>();
  private readonly canvas = el("canvas", { "aria-hidden": "true" });
  /** First and last token of each answer that was verified. */
  private answers: ([number, number] | null)[] = [];
  private readonly about = el("p", {});
  /** What stands there. */
  private note: string | null | undefined;
  private names = "";
  private readonly heads = el("div", { class: "heads", role: "list", "aria-label": "Threads" });
  private readonly field: HTMLElement;
  private readonly context: CanvasRenderingContext2D;
  private column = NARROWEST;
  private height = 0;
  private letter = 7.2;
  private colours!: Colours;

  constructor(
    readonly trace: Shown,
    readonly number: number,
    private readonly title: string,
    private readonly state: State,
    handlers: Handlers,
  ) {
    this.context = this.canvas.getContext("2d")!;
    this.field = el("div", { class: "field" }, this.canvas);
    this.scroller = el(
      "div",
      {
        class: "scroller",
        tabindex: 0,
        role: "application",
        "aria-roledescription": "threads side by side",
        "aria-describedby": "token-in-words keys",
      },
      this.heads,
      this.field,
    );
    const summary = el("header", {}, el("h2", {}, title), this.about);
    this.element = el("section", { class: "pane", "aria-label": title }, summary, this.scroller);
    this.update();
    this.scroller.addEventListener("pointermove", (event) => handlers.hover(this.at(event)));
    this.scroller.addEventListener("pointerleave", () => handlers.hover(null));
    this.scroller.addEventListener("click", (event) => {
      const at = this.at(event);
      if (at) handlers.pick(at);
    });
    this.scroller.addEventListener("keydown", handlers.key);
  }

  /** Says anew what stands above the columns, where it has changed; returns whether it has. */
  update(): boolean {
    const { trace } = this;
    const { note } = trace;
    const names = `${note === null} ${trace.threads.map(nameOf)}`;
    if (note === this.note && names === this.names) return false;
    if (note !== this.note) this.about.replaceChildren(...(note === null ? this.outcome() : [note]));
    if (names !== this.names) this.name();
    [this.note, this.names] = [note, names];
    return true;
  }

  /** The threads' names, and what has become of them. */
  private name(): void {
    const { trace, title } = this;
    this.heads.replaceChildren(el("span", { class: "corner", "aria-hidden": "true" }, "step"), ...trace.threads.map((_, n) => this.head(n)));
    this.scroller.setAttribute("aria-label", `${title}: ${trace.threads.length} threads, ${trace.steps} steps`);
    this.answers = trace.threads.map((thread) => (thread.correct === null ? null : answerOf(thread)));
  }

  /** The answer, whose it is and why, and what it cost. */
  private outcome(): (Node | string)[] {
    const { trace } = this;
    const chosen = trace.threads[trace.chosen];
    const why = { best_tag: "it called itself [[best]]", majority: "its answer is the most frequent", first: "no answer" };
    const word = verdict(chosen.correct);
    const sampled = trace.threads.reduce((sum, thread) => sum + thread.texts.length - thread.given, 0);
    return [
      ...(chosen.answer === null ? ["No answer"] : ["Answer ", foreign(chosen.answer)]),
      word && ` · ${word}`,
      ` · chosen: thread ${chosen.label} (${why[trace.chosenBy as keyof typeof why] ?? trace.chosenBy})`,
      ` · ${trace.steps} steps, ${sampled} tokens, ${trace.seconds.toFixed(2)}\u00a0s`,
    ];
  }

  /** The outcome, or what stands in its place, in words. */
  inWords(): string {
    return `${this.title}. ${this.about.textContent}`;
  }

  private head(n: number): HTMLElement {
    const thread = this.trace.threads[n];
    const sign = thread.correct === true ? "✓" : thread.correct === false ? "✗" : "";
    const chosen = this.trace.note === null && n === this.trace.chosen;
    return el(
      "div",
      {
        class: `head${chosen ? " chosen" : ""}${thread.correct ? " verified" : ""}`,
        role: "listitem",
        title: outcome(thread, chosen),
        "aria-label": inOneLine(thread, chosen),
      },
      el("strong", {}, nameOf(thread)),
      // The star stands here, since a column on a phone is as wide as the name alone.
      el("small", { "aria-hidden": "true" }, [chosen && "★", thread.tag ?? thread.finish_reason, sign].filter(Boolean).join(" ")),
    );
  }

  /** The place in `trace.layers` of the layer that is shown, -1 if it, or the head that is shown, is not there. */
  get layer(): number {
    return this.state.view.head > this.trace.heads ? -1 : this.trace.layers.indexOf(this.state.layer);
  }

  get focus(): Focus | null {
    return this.state.focus?.pane === this.number ? this.state.focus : null;
  }

  /** What the arcs show: the readings of the token in focus, or the strongest ones of the newest tokens. */
  arcs(): Arc[] {
    const { layer, trace, state } = this;
    if (layer < 0) return [];
    const of = (thread: number, step: number, fresh: number): Arc[] => {
      const gate = trace.gate(layer, state.view, thread, step);
      const entries = trace.entries(layer, state.view, thread, step);
      return entries.map((entry) => ({ ...entry, gate, from: { thread, step }, fresh }));
    };
    if (this.focus) return of(this.focus.thread, this.focus.step, 1).filter((arc) => arc.weight >= FAINT);
    const found: Arc[] = [];
    trace.threads.forEach((thread, n) => {
      const end = Math.min(state.now, thread.texts.length - 1);
      for (let step = Math.max(0, state.now - state.trail + 1); step <= end; step++) {
        found.push(...of(n, step, 1 - (state.now - step) / state.trail).filter((arc) => arc.weight * arc.gate >= STRONG));
      }
    });
    return found.sort((a, b) => b.weight * b.gate - a.weight * a.gate).slice(0, MOST_ARCS);
  }

  /** Shows the strongest arc, unless the reader looks at a token. */
  revealStrongest(): void {
    const [strongest] = this.arcs();
    if (!strongest || this.focus) return;
    this.reveal(strongest.from.thread, strongest.from.step);
    this.reveal(null, strongest.step);
  }

  /** Keeps the newest token in sight, unless the reader has scrolled back. */
  follow(): void {
    const { scroller } = this;
    const below = this.height - scroller.scrollTop - scroller.clientHeight;
    this.grow();
    if (below < 4 * ROW) scroller.scrollTop = scroller.scrollHeight;
  }

  private grow(): void {
    this.height = (this.trace.steps + 1) * ROW;
    this.field.style.height = `${this.height}px`;
  }

  heatAt(thread: number, step: number): number {
    return this.trace.heat(this.state.heat, this.layer, this.state.view, thread, step);
  }

  private at(event: MouseEvent): { thread: number; step: number } | null {
    const box = this.canvas.getBoundingClientRect();
    const step = Math.floor((event.clientY - box.top + this.scroller.scrollTop) / ROW);
    const thread = Math.floor((event.clientX - box.left + this.scroller.scrollLeft - GUTTER) / this.column);
    if (event.clientY < box.top || event.clientX - box.left < GUTTER) return null;
    const found = this.trace.threads[thread];
    return found && step >= 0 && step < found.texts.length ? { thread, step } : null;
  }

  /** Scrolls as little as needed to show a token. */
  reveal(thread: number | null, step: number): void {
    const { scroller } = this;
    const height = scroller.clientHeight - this.heads.offsetHeight;
    const top = step * ROW;
    if (top < scroller.scrollTop + ROW) scroller.scrollTop = top - 3 * ROW;
    else if (top > scroller.scrollTop + height - 3 * ROW) scroller.scrollTop = top - height + 4 * ROW;
    if (thread === null) return;
    const left = thread * this.column;
    const width = scroller.clientWidth - GUTTER;
    if (left < scroller.scrollLeft) scroller.scrollLeft = left;
    else if (left + this.column > scroller.scrollLeft + width) scroller.scrollLeft = left + this.column - width;
  }

  /** Fits columns and canvas to the room that there is. */
  resize(): void {
    const { scroller, canvas, trace } = this;
    const count = trace.threads.length;
    this.column = Math.max(NARROWEST, Math.min(WIDEST, Math.floor((scroller.clientWidth - GUTTER) / count)));
    const width = GUTTER + this.column * count;
    scroller.style.setProperty("--column", `${this.column}px`);
    this.heads.style.width = `${width}px`;
    this.field.style.width = `${width}px`;
    this.grow();
    const ratio = window.devicePixelRatio || 1;
    const seen = { width: Math.min(scroller.clientWidth, width), height: scroller.clientHeight - this.heads.offsetHeight };
    canvas.style.top = `${this.heads.offsetHeight}px`;
    canvas.style.width = `${seen.width}px`;
    canvas.style.height = `${seen.height}px`;
    const size = [Math.round(seen.width * ratio), Math.round(seen.height * ratio)];
    // To set them clears the canvas, which would be blank until the next frame.
    if (canvas.width !== size[0] || canvas.height !== size[1]) [canvas.width, canvas.height] = size;
    this.context.setTransform(ratio, 0, 0, ratio, 0, 0);
    this.context.font = FONT;
    this.letter = this.context.measureText("m").width;
    const style = getComputedStyle(scroller);
    const colour = (name: string) => style.getPropertyValue(`--${name}`).trim();
    this.colours = {
      back: colour("back"),
      alternate: colour("alternate"),
      chosen: colour("chosen"),
      verified: colour("verified"),
      right: colour("right"),
      wrong: colour("wrong"),
      text: colour("text"),
      faint: colour("faint"),
      line: colour("line"),
      heat: colour("heat"),
      hit: colour("hit"),
      accent: colour("accent"),
    };
  }

  draw(): void {
    const { context, canvas, scroller, trace, colours, state, column } = this;
    const width = parseFloat(canvas.style.width);
    const height = parseFloat(canvas.style.height);
    const { scrollTop, scrollLeft } = scroller;
    const first = Math.max(0, Math.floor(scrollTop / ROW));
    const last = Math.min(trace.steps - 1, Math.floor((scrollTop + height) / ROW));
    const letters = Math.floor((column - STRIP - 18) / this.letter);
    context.font = FONT;
    context.textBaseline = "middle";
    context.fillStyle = colours.back;
    context.fillRect(0, 0, width, height);
    trace.threads.forEach((thread, n) => {
      const x = GUTTER + n * column - scrollLeft;
      if (x > width || x + column < GUTTER) return;
      context.fillStyle = this.tint(n);
      context.fillRect(x, 0, column, height);
      context.save();
      context.beginPath();
      context.rect(x, 0, column - 2, height);
      context.clip();
      const end = Math.min(last, thread.texts.length - 1);
      this.drawAnswer(n, x, scrollTop);
      for (let step = first; step <= end; step++) this.drawToken(thread, n, step, x, step * ROW - scrollTop, letters);
      for (const mark of thread.marks) {
        if (mark.step < first || mark.step > end) continue;
        drawMark(context, mark.kind, x + column - 11, mark.step * ROW - scrollTop + ROW / 2);
      }
      context.restore();
    });
    context.globalAlpha = 1;
    this.drawGutter(first, last, height, scrollTop);
    const now = (state.now + 1) * ROW - scrollTop;
    context.fillStyle = colours.accent;
    context.fillRect(0, now - 1, width, 1);
    this.drawArcs(width, height);
  }

  /** Green belongs to an answer that was verified, chosen or not. */
  private tint(n: number): string {
    const { trace, colours } = this;
    if (trace.note === null && n === trace.chosen) return trace.threads[n].correct ? colours.verified : colours.chosen;
    return n % 2 ? colours.alternate : colours.back;
  }

  /** What the verifier says, behind the answer's tokens. */
  private drawAnswer(n: number, x: number, scrollTop: number): void {
    const found = this.answers[n];
    if (!found) return;
    const [first, last] = found;
    const { context, colours, column } = this;
    const right = this.trace.threads[n].correct;
    const y = first * ROW - scrollTop;
    context.globalAlpha = first <= this.state.now ? 1 : 0.3;
    context.fillStyle = right ? colours.right : colours.wrong;
    context.fillRect(x + STRIP + 2, y + 1, column - STRIP - 6, (last - first + 1) * ROW - 2);
    context.fillStyle = colours.text;
    context.fillText(right ? "✓" : "✗", x + column - 16, y + ROW / 2 + 1);
  }

  private drawToken(thread: Thread, n: number, step: number, x: number, y: number, letters: number): void {
    const { context, colours, state } = this;
    const written = step <= state.now;
    const heat = this.heatAt(n, step);
    if (heat > 0) {
      context.globalAlpha = Math.min(1, heat) * (written ? 1 : 0.3);
      context.fillStyle = colours.heat;
      context.fillRect(x + 1, y, STRIP, ROW);
    }
    context.globalAlpha = 1;
    if (this.hits.has(thread.start + step)) {
      context.fillStyle = colours.hit;
      context.fillRect(x + STRIP + 2, y + 1, this.column - STRIP - 6, ROW - 2);
    }
    context.globalAlpha = written ? 1 : 0.3;
    context.fillStyle = step < thread.given ? colours.faint : colours.text;
    context.fillText(cut(shown(thread, step), letters), x + STRIP + 5, y + ROW / 2 + 1);
  }

  private drawGutter(first: number, last: number, height: number, scrollTop: number): void {
    const { context, colours } = this;
    context.fillStyle = colours.back;
    context.fillRect(0, 0, GUTTER - 2, height);
    context.fillStyle = colours.line;
    context.fillRect(GUTTER - 2, 0, 1, height);
    context.fillStyle = colours.faint;
    context.textAlign = "right";
    for (let step = first; step <= last; step++) {
      if (step % 5 === 0) context.fillText(String(step), GUTTER - 8, step * ROW - scrollTop + ROW / 2 + 1);
    }
    context.textAlign = "left";
    const { span } = this.state;
    if (!span) return;
    context.fillStyle = colours.accent;
    context.fillRect(GUTTER - 5, span.from * ROW - scrollTop, 3, (span.to + 1 - span.from) * ROW);
  }

  private drawArcs(width: number, height: number): void {
    const { context, colours, focus } = this;
    const arcs = this.arcs();
    this.scroller.dataset.arcs = String(arcs.length);
    context.save();
    context.beginPath();
    context.rect(GUTTER - 2, 0, width, height);
    context.clip();
    if (focus) this.outline(focus.thread, focus.step, colours.accent, 2);
    for (const arc of arcs.slice().reverse()) {
      const turn = Math.floor(arc.thread / THREAD_COLOURS.length);
      const colour = THREAD_COLOURS[arc.thread % THREAD_COLOURS.length];
      const to = this.corner(arc.thread, arc.step);
      const from = this.corner(arc.from.thread, arc.from.step);
      const leftwards = arc.thread < arc.from.thread;
      const x0 = leftwards ? from.x : from.x + this.column - 2;
      const x1 = leftwards ? to.x + this.column - 2 : to.x;
      const y0 = from.y + ROW / 2;
      const y1 = to.y + ROW / 2;
      const bend = (leftwards ? -1 : 1) * Math.max(24, Math.abs(x1 - x0) / 2);
      context.strokeStyle = colour;
      context.globalAlpha = (0.25 + 0.55 * Math.min(1, arc.gate * 1.5)) * arc.fresh; // what is below stays readable
      context.lineWidth = 1 + 9 * arc.weight;
      context.setLineDash(THREAD_DASHES[turn % THREAD_DASHES.length]);
      context.beginPath();
      context.moveTo(x0, y0);
      context.bezierCurveTo(x0 + bend, y0, x1 - bend, y1, x1, y1);
      context.stroke();
      context.setLineDash([]);
      context.globalAlpha = arc.fresh;
      this.outline(arc.thread, arc.step, colour, 1.5);
      context.globalAlpha = 1;
      if (focus && arc.weight >= 0.05) this.label(percent(arc.weight), to.x + this.column - 4, y1, colour);
    }
    context.restore();
  }

  private corner(thread: number, step: number): { x: number; y: number } {
    return {
      x: GUTTER + thread * this.column - this.scroller.scrollLeft,
      y: step * ROW - this.scroller.scrollTop,
    };
  }

  private outline(thread: number, step: number, colour: string, width: number): void {
    const { x, y } = this.corner(thread, step);
    this.context.strokeStyle = colour;
    this.context.lineWidth = width;
    this.context.strokeRect(x + STRIP + 2, y + 0.5, this.column - STRIP - 5, ROW - 1);
  }

  private label(text: string, right: number, y: number, colour: string): void {
    const { context, colours } = this;
    const width = context.measureText(text).width + 6;
    context.fillStyle = colours.back;
    context.fillRect(right - width, y - 7, width, 14);
    context.strokeStyle = colour;
    context.lineWidth = 1;
    context.strokeRect(right - width, y - 7, width, 14);
    context.fillStyle = colours.text;
    context.fillText(text, right - width + 3, y + 1);
  }
}

/** First and last token of a thread's answer, where it stands as it was understood. */
function answerOf({ texts, answer }: Thread): [number, number] | null {
  const at = answer ? texts.join("").lastIndexOf(answer) : -1;
  return at < 0 ? null : tokensOver(texts, at, at + answer!.length);
}

/** A thread that has not begun has no label yet. */
const nameOf = ({ label, texts }: Thread): string => (texts.length ? `Thread ${label}` : "Thread");

/** How a thread ended, in words. */
function outcome(thread: Thread, chosen: boolean): string {
  return [chosen && "chosen", thread.tag && `[[${thread.tag}]]`, verdict(thread.correct)].filter(Boolean).join(", ");
}

/** The same behind the thread's name. */
export function inOneLine(thread: Thread, chosen: boolean): string {
  return [nameOf(thread), outcome(thread, chosen)].filter(Boolean).join(", ");
}

export function verdict(correct: boolean | null): string {
  return correct === null ? "" : correct ? "verified: right" : "verified: wrong";
}

/** A sign of its own shape for each kind: circle, triangle, square. */
export function drawMark(context: CanvasRenderingContext2D, kind: Mark["kind"], x: number, y: number): void {
  context.fillStyle = MARK_COLOURS[kind];
  context.beginPath();
  if (kind === "cite") context.arc(x, y, 4, 0, 7);
  else if (kind === "stop") context.rect(x - 4, y - 4, 8, 8);
  else {
    context.moveTo(x, y - 5);
    context.lineTo(x + 5, y + 4);
    context.lineTo(x - 5, y + 4);
  }
  context.fill();
}

function cut(text: string, letters: number): string {
  if (text.length <= letters) return text;
  return `${Array.from(text.slice(0, 2 * letters))
    .slice(0, Math.max(1, letters - 1))
    .join("")}…`;
}
