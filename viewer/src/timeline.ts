// The whole run at a glance, a row per thread, and the playhead; above it a band on which steps are chosen.

import { el, option } from "./dom";
import { drawMark, type Pane } from "./pane";
import { windowOf, type Span, type State } from "./state";

/** Height of the band, in pixels. */
const BAND = 18;
/** Height of all rows together, in pixels, at most: the columns need the rest. */
const ROWS = 96;
/** Rows less high than this have no room for a gap between them. */
const PARTED = 2;
/** So far from an end of the chosen steps the pointer takes hold of it. */
const GRIP = 8;
/** A pointer that moves less has clicked. */
const STILL = 3;

export class Timeline {
  readonly element: HTMLElement;
  private readonly canvas = el("canvas", { class: "run", "aria-hidden": "true" });
  /** Its numbers are fields beside the matrix, for those who do not point. */
  private readonly band = el("canvas", {
    class: "band",
    "aria-hidden": "true",
    title: "Drag to choose the steps that the matrix is about; click to clear",
  });
  private readonly slider: HTMLInputElement;
  private readonly button = el("button", { type: "button", class: "play" }, "Play");
  /** An output would be read out at every step. */
  private readonly clock = el("span", { class: "clock" });
  private readonly picture = document.createElement("canvas");
  private pictured = "";
  private speed = 16;
  private row = 6;

  constructor(
    private readonly panes: Pane[],
    private readonly state: State,
    private readonly steps: number,
    private readonly moveTo: (now: number, playing?: boolean) => void,
    choose: ((span: Span | null, quiet?: boolean) => void) | null,
  ) {
    this.slider = el("input", { type: "range", min: 0, max: steps - 1, value: steps - 1, "aria-label": "Time, in steps" });
    this.slider.addEventListener("input", () => {
      this.stop();
      moveTo(this.slider.valueAsNumber);
    });
    this.button.addEventListener("click", () => this.toggle());
    const speed = el("select", { "aria-label": "Steps a second" }, ...[4, 16, 64].map((n) => option(n, `${n} steps/s`)));
    speed.value = String(this.speed);
    speed.addEventListener("change", () => {
      this.speed = Number(speed.value);
    });
    const scrub = (event: PointerEvent) => {
      const box = this.canvas.getBoundingClientRect();
      this.stop();
      moveTo(Math.floor(((event.clientX - box.left) / box.width) * this.steps));
    };
    this.canvas.addEventListener("pointerdown", (event) => {
      this.canvas.setPointerCapture(event.pointerId);
      scrub(event);
    });
    this.canvas.addEventListener("pointermove", (event) => {
      if (event.buttons) scrub(event);
    });
    if (choose) this.drawSpansWith(choose);
    this.element = el(
      "footer",
      { class: "timeline", "aria-label": "Time" },
      choose && this.band,
      this.canvas,
      this.slider,
      el("div", { class: "controls" }, this.button, speed, this.clock),
    );
  }

  private drawSpansWith(choose: (span: Span | null, quiet?: boolean) => void): void {
    const { band, state, steps } = this;
    let held: { anchor: number; x: number; drawn: boolean } | null = null;
    band.addEventListener("pointerdown", (event) => {
      band.setPointerCapture(event.pointerId);
      const box = band.getBoundingClientRect();
      const near = (edge: number) => Math.abs(box.left + (edge / steps) * box.width - event.clientX) < GRIP;
      const { span } = state;
      const anchor = span && near(span.to + 1) ? span.from : span && near(span.from) ? span.to : stepAt(event);
      held = { anchor, x: event.clientX, drawn: false };
    });
    const stepAt = (event: PointerEvent) => {
      const box = band.getBoundingClientRect();
      return Math.max(0, Math.min(steps - 1, Math.floor(((event.clientX - box.left) / box.width) * steps)));
    };
    band.addEventListener("pointermove", (event) => {
      if (!held || (!held.drawn && Math.abs(event.clientX - held.x) < STILL)) return;
      held.drawn = true;
      const step = stepAt(event);
      choose({ from: Math.min(held.anchor, step), to: Math.max(held.anchor, step) }, true);
    });
    band.addEventListener("pointerup", () => {
      if (held) choose(held.drawn ? state.span : null);
      held = null;
    });
    band.addEventListener("pointercancel", () => {
      held = null;
    });
  }

  toggle(): void {
    if (this.state.playing) return this.stop();
    if (this.state.now >= this.steps - 1) this.moveTo(0, true);
    this.state.playing = true;
    this.button.textContent = "Pause";
    let last = performance.now();
    let exact = this.state.now;
    const tick = (time: number) => {
      if (!this.state.playing) return;
      exact += ((time - last) / 1000) * this.speed;
      last = time;
      if (Math.floor(exact) !== this.state.now) this.moveTo(Math.floor(exact), true);
      if (this.state.now >= this.steps - 1) this.stop();
      else requestAnimationFrame(tick);
    };
    requestAnimationFrame(tick);
  }

  private stop(): void {
    this.state.playing = false;
    this.button.textContent = "Play";
  }

  resize(): void {
    const rows = this.panes.reduce((sum, pane) => sum + pane.trace.threads.length, this.panes.length - 1);
    this.row = Math.min(10, rows * PARTED > ROWS ? ROWS / rows : Math.floor(ROWS / rows));
    const ratio = window.devicePixelRatio || 1;
    for (const canvas of [this.canvas, this.picture]) {
      canvas.width = Math.round(this.element.clientWidth * ratio);
      canvas.height = Math.round(rows * this.row * ratio);
    }
    this.canvas.style.height = `${rows * this.row}px`;
    this.band.width = Math.round(this.element.clientWidth * ratio);
    this.band.height = Math.round(BAND * ratio);
    this.band.style.height = `${BAND}px`;
    this.pictured = "";
  }

  draw(): void {
    const { state, canvas } = this;
    const about = JSON.stringify([state.layer, state.view, state.heat]);
    if (about !== this.pictured) this.drawPicture();
    this.pictured = about;
    const context = canvas.getContext("2d")!;
    context.clearRect(0, 0, canvas.width, canvas.height);
    if (this.picture.width) context.drawImage(this.picture, 0, 0); // a page that is not laid out has none
    const style = getComputedStyle(this.element);
    const unit = canvas.width / this.steps;
    context.fillStyle = style.getPropertyValue("--veil");
    const { from, to } = windowOf(state);
    context.fillRect((to + 1) * unit, 0, canvas.width, canvas.height);
    context.fillRect(0, 0, from * unit, canvas.height);
    context.fillStyle = style.getPropertyValue("--accent");
    context.fillRect((state.now + 1) * unit - 1, 0, 2, canvas.height);
    this.slider.value = String(state.now);
    this.clock.textContent = `step ${state.now} of ${this.steps - 1}`;
    this.slider.setAttribute("aria-valuetext", this.clock.textContent);
    this.drawBand(style);
  }

  /** An axis of steps, and on it those that were chosen. */
  private drawBand(style: CSSStyleDeclaration): void {
    const { band, state, steps } = this;
    const context = band.getContext("2d")!;
    const ratio = window.devicePixelRatio || 1;
    const unit = band.width / steps;
    context.fillStyle = style.getPropertyValue("--alternate");
    context.fillRect(0, 0, band.width, band.height);
    if (state.span) {
      const { from, to } = state.span;
      context.fillStyle = style.getPropertyValue("--chosen");
      context.fillRect(from * unit, 0, (to + 1 - from) * unit, band.height);
      context.fillStyle = style.getPropertyValue("--accent");
      for (const edge of [from * unit, (to + 1) * unit - 3 * ratio]) context.fillRect(edge, 0, 3 * ratio, band.height);
    }
    context.fillStyle = style.getPropertyValue("--faint");
    context.font = `${11 * ratio}px system-ui, sans-serif`;
    context.textBaseline = "middle";
    const apart = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000].find((every) => every * unit >= 48 * ratio) ?? 2000;
    for (let step = 0; step < steps; step += apart) {
      context.fillRect(step * unit, band.height - 4 * ratio, ratio, 4 * ratio);
      context.fillText(String(step), step * unit + 5 * ratio, band.height / 2);
    }
  }

  private drawPicture(): void {
    const context = this.picture.getContext("2d")!;
    const style = getComputedStyle(this.element);
    const unit = this.picture.width / this.steps;
    const row = this.row * (window.devicePixelRatio || 1);
    const height = this.row >= PARTED ? row - 1 : row;
    context.clearRect(0, 0, this.picture.width, this.picture.height);
    let top = 0;
    for (const pane of this.panes) {
      pane.trace.threads.forEach((thread, n) => {
        context.fillStyle = style.getPropertyValue(n === pane.trace.chosen ? "--chosen" : "--alternate");
        context.globalAlpha = 1;
        context.fillRect(0, top, thread.texts.length * unit, height);
        context.fillStyle = style.getPropertyValue("--heat");
        thread.texts.forEach((_, step) => {
          context.globalAlpha = Math.max(0, Math.min(1, pane.heatAt(n, step)));
          context.fillRect(step * unit, top, Math.max(1, unit), height);
        });
        context.globalAlpha = 1;
        if (row >= 6) for (const mark of thread.marks) drawMark(context, mark.kind, (mark.step + 0.5) * unit, top + row / 2);
        top += row;
      });
      top += row;
    }
  }
}
