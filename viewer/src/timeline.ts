// The whole run at a glance, a row per thread, and the playhead.

import { el, option } from "./dom";
import { drawMark, type Pane } from "./pane";
import type { State } from "./state";

export class Timeline {
  readonly element: HTMLElement;
  private readonly canvas = el("canvas", { "aria-hidden": "true" });
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
    this.element = el(
      "footer",
      { class: "timeline", "aria-label": "Time" },
      this.canvas,
      this.slider,
      el("div", { class: "controls" }, this.button, speed, this.clock),
    );
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
    this.row = Math.max(2, Math.min(10, Math.floor(96 / rows)));
    const ratio = window.devicePixelRatio || 1;
    for (const canvas of [this.canvas, this.picture]) {
      canvas.width = Math.round(this.element.clientWidth * ratio);
      canvas.height = Math.round(rows * this.row * ratio);
    }
    this.canvas.style.height = `${rows * this.row}px`;
    this.pictured = "";
  }

  draw(): void {
    const { state, canvas } = this;
    const about = JSON.stringify([state.layer, state.view, state.heat]);
    if (about !== this.pictured) this.drawPicture();
    this.pictured = about;
    const context = canvas.getContext("2d")!;
    context.clearRect(0, 0, canvas.width, canvas.height);
    context.drawImage(this.picture, 0, 0);
    const style = getComputedStyle(this.element);
    const unit = canvas.width / this.steps;
    context.fillStyle = style.getPropertyValue("--veil");
    context.fillRect((state.now + 1) * unit, 0, canvas.width, canvas.height);
    if (state.window && state.now >= state.window) {
      context.fillRect(0, 0, (state.now + 1 - state.window) * unit, canvas.height);
    }
    context.fillStyle = style.getPropertyValue("--accent");
    context.fillRect((state.now + 1) * unit - 1, 0, 2, canvas.height);
    this.slider.value = String(state.now);
    this.clock.textContent = `step ${state.now} of ${this.steps - 1}`;
    this.slider.setAttribute("aria-valuetext", this.clock.textContent);
  }

  private drawPicture(): void {
    const context = this.picture.getContext("2d")!;
    const style = getComputedStyle(this.element);
    const unit = this.picture.width / this.steps;
    const row = this.row * (window.devicePixelRatio || 1);
    context.clearRect(0, 0, this.picture.width, this.picture.height);
    let top = 0;
    for (const pane of this.panes) {
      pane.trace.threads.forEach((thread, n) => {
        context.fillStyle = style.getPropertyValue(n === pane.trace.chosen ? "--chosen" : "--alternate");
        context.globalAlpha = 1;
        context.fillRect(0, top, thread.texts.length * unit, row - 1);
        context.fillStyle = style.getPropertyValue("--heat");
        thread.texts.forEach((_, step) => {
          context.globalAlpha = Math.max(0, Math.min(1, pane.heatAt(n, step)));
          context.fillRect(step * unit, top, Math.max(1, unit), row - 1);
        });
        context.globalAlpha = 1;
        if (row >= 6) for (const mark of thread.marks) drawMark(context, mark.kind, (mark.step + 0.5) * unit, top + row / 2);
        top += row;
      });
      top += row;
    }
  }
}
