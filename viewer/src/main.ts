// Puts the page together: controls, panes, panels, and what moves between them.

import "./style.css";
import { el, foreign, option } from "./dom";
import { MatrixPanel, TokenPanel } from "./panels";
import { Pane } from "./pane";
import { Search } from "./search";
import { HEATS, type Heat, type State } from "./state";
import { Timeline } from "./timeline";
import { tracesOfPage, type Trace } from "./trace";

const KEYS =
  "Arrow keys move from token to token, Home and End to a thread's first and last one. Enter goes to what the token " +
  "reads most, Backspace goes back, n to the next mark, comma and full stop move the time by a step, Space plays, " +
  "slash searches, Escape lets go.";

function start(traces: Trace[]): void {
  const read = traces.find((trace) => trace.layers.length > 0);
  const steps = Math.max(...traces.map((trace) => trace.steps));
  const state: State = {
    layer: read ? read.layers[read.busiestLayer()] : -1,
    view: 0,
    heat: read ? "gate" : "entropy",
    now: steps - 1,
    window: 0,
    playing: false,
    focus: null,
    pinned: false,
  };
  const past: { pane: number; thread: number; step: number }[] = [];
  const status = el("p", { role: "status", class: "hidden" });
  const names = traces.map(
    (trace) => (trace.strategy === "lace" ? "LACE: threads read each other" : "Independent threads"),
  );

  const panes = traces.map(
    (trace, number) =>
      new Pane(trace, number, names[number], state, {
        hover(at) {
          if (state.pinned) return;
          if (at?.thread === state.focus?.thread && at?.step === state.focus?.step && at !== null) return;
          if (at === null && state.focus === null) return;
          state.focus = at && { pane: number, ...at };
          refresh();
        },
        pick(at) {
          const { focus } = state;
          const same = state.pinned && focus?.pane === number && focus.thread === at.thread && focus.step === at.step;
          state.pinned = !same;
          state.focus = { pane: number, ...at };
          refresh();
        },
        key: (event) => press(event, number),
      }),
  );

  const timeline = new Timeline(panes, state, steps, moveTo);
  const matrix = new MatrixPanel(panes, state);
  const token = new TokenPanel(panes, state, (pane, thread, step) => go(pane, thread, step));
  const search = new Search(panes, (pane, thread, step) => go(pane, thread, step), () => refresh());

  // --- controls -------------------------------------------------------------------------------------------------

  const select = (label: string, options: HTMLOptionElement[], value: string, change: (value: string) => void) => {
    const box = el("select", {}, ...options);
    box.value = value;
    box.addEventListener("change", () => {
      change(box.value);
      refresh();
    });
    return el("label", {}, `${label} `, box);
  };
  const pickers = read
    ? [
        select("Layer", read.layers.map((layer) => option(layer, String(layer))), String(state.layer), (value) => {
          state.layer = Number(value);
        }),
        select(
          "Head",
          [option(0, "mean"), ...Array.from({ length: read.heads }, (_, head) => option(head + 1, String(head)))],
          "0",
          (value) => {
            state.view = Number(value);
          },
        ),
      ]
    : [];
  const theme = el("button", { type: "button" }, "Light or dark");
  theme.addEventListener("click", () => {
    const dark = getComputedStyle(document.documentElement).colorScheme === "dark";
    document.documentElement.dataset.theme = dark ? "light" : "dark";
    resize();
  });
  const controls = el(
    "div",
    { class: "controls", role: "group", "aria-label": "What is shown" },
    ...pickers,
    select(
      "Heat",
      (Object.keys(HEATS) as Heat[])
        .filter((heat) => read || (heat !== "gate" && heat !== "read"))
        .map((heat) => option(heat, HEATS[heat])),
      state.heat,
      (value) => {
        state.heat = value as Heat;
      },
    ),
    search.element,
    theme,
  );

  document.getElementById("app")!.append(
    el(
      "header",
      { class: "page" },
      el("h1", {}, "What the threads read of each other"),
      el("p", { class: "prompt" }, foreign(traces[0].prompt.trim())),
      controls,
    ),
    el(
      "main",
      {},
      el("div", { class: "panes" }, ...panes.map((pane) => pane.element)),
      el("aside", {}, token.element, matrix.element, legend(traces)),
    ),
    timeline.element,
    transcript(traces, names),
    el("p", { id: "keys", class: "keys" }, KEYS),
    status,
  );

  // --- what moves -----------------------------------------------------------------------------------------------

  function go(pane: number, thread: number, step: number): void {
    if (state.focus) past.push(state.focus);
    state.focus = { pane, thread, step };
    state.pinned = true;
    if (step > state.now) state.now = step;
    panes[pane].reveal(thread, step);
    status.textContent = token.inWords();
    refresh();
  }

  function moveTo(now: number, playing = false): void {
    state.now = Math.max(0, Math.min(steps - 1, now));
    if (playing || !state.pinned) state.focus = null;
    if (playing) state.pinned = false;
    panes.forEach((pane) => pane.reveal(null, Math.min(state.now, pane.trace.steps - 1)));
    refresh();
  }

  function press(event: KeyboardEvent, number: number): void {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const pane = panes[number];
    const { trace } = pane;
    const at = state.focus?.pane === number ? state.focus : { pane: number, thread: 0, step: trace.threads[0].given - 1 };
    const within = (thread: number, step: number): void => {
      const n = Math.max(0, Math.min(trace.threads.length - 1, thread));
      const top = trace.threads[n].texts.length - 1;
      go(number, n, Math.max(0, Math.min(top, step)));
    };
    const page = Math.max(1, Math.floor(pane.scroller.clientHeight / 18) - 4);
    const actions: Record<string, () => void> = {
      ArrowDown: () => within(at.thread, at.step + 1),
      ArrowUp: () => within(at.thread, at.step - 1),
      ArrowLeft: () => within(at.thread - 1, at.step),
      ArrowRight: () => within(at.thread + 1, at.step),
      PageDown: () => within(at.thread, at.step + page),
      PageUp: () => within(at.thread, at.step - page),
      Home: () => within(at.thread, 0),
      End: () => within(at.thread, trace.steps),
      Enter: () => {
        const [most] = pane.arcs();
        if (state.focus && most) within(most.thread, most.step);
      },
      Backspace: () => {
        const before = past.pop();
        if (!before) return;
        state.focus = null;
        go(before.pane, before.thread, before.step);
      },
      n: () => {
        const marks = trace.threads
          .flatMap((thread, n) => thread.marks.map((mark) => ({ thread: n, step: mark.step })))
          .sort((a, b) => a.step - b.step || a.thread - b.thread);
        const later = (mark: { thread: number; step: number }) =>
          mark.step > at.step || (mark.step === at.step && mark.thread > at.thread);
        const next = marks.find(later) ?? marks[0];
        if (next) within(next.thread, next.step);
      },
      ",": () => moveTo(state.now - 1),
      ".": () => moveTo(state.now + 1),
      " ": () => timeline.toggle(),
      "/": () => search.focus(),
      Escape: () => {
        state.focus = null;
        state.pinned = false;
        refresh();
      },
    };
    const action = actions[event.key];
    if (!action) return;
    event.preventDefault();
    action();
  }

  let waiting = false;
  function refresh(): void {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      panes.forEach((pane) => pane.draw());
      token.draw();
      matrix.draw();
      timeline.draw();
    });
  }

  function resize(): void {
    timeline.resize();
    // The panes take the height that head and timeline leave.
    const taken = panes[0].scroller.getBoundingClientRect().top + window.scrollY + timeline.element.offsetHeight + 24;
    document.documentElement.style.setProperty("--taken", `${taken}px`);
    panes.forEach((pane) => pane.resize());
    refresh();
  }

  panes.forEach((pane) => pane.scroller.addEventListener("scroll", refresh, { passive: true }));
  new ResizeObserver(resize).observe(document.body);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", resize);
  resize();
}

function legend(traces: Trace[]): HTMLElement {
  const gap = Math.max(...traces.map((trace) => trace.replayGap));
  const sign = (kind: string, text: string) => el("li", {}, el("span", { class: `sign ${kind}` }), text);
  return el(
    "section",
    { class: "legend", "aria-label": "Legend" },
    el("h2", {}, "Signs"),
    el(
      "ul",
      {},
      sign("cite", "cites another thread"),
      sign("fix", "corrects itself"),
      sign("stop", "was closed, since another had finished"),
      sign("heat", "strip beside a token: heat, strong is much"),
      sign("star", "the thread that speaks for all"),
    ),
    el(
      "p",
      {},
      "An arc leads from a token to what its thread read when it chose that token, one step before; its width and the " +
        "percentage are the attention weight. A faint arc stands behind a gate that is nearly closed.",
    ),
    el("p", {}, `Log-probabilities of the recording and of the decoding differ by ${gap} nats at most.`),
  );
}

/** The same to be read in lines. */
function transcript(traces: Trace[], names: string[]): HTMLElement {
  return el(
    "details",
    { class: "transcript" },
    el("summary", {}, "Texts of the threads"),
    ...traces.flatMap((trace, number) => [
      el("h2", {}, names[number]),
      ...trace.threads.map((thread, n) =>
        el(
          "article",
          {},
          el("h3", {}, `Thread ${thread.label}${n === trace.chosen ? ", chosen" : ""}`),
          el("p", {}, foreign(thread.texts.slice(thread.given).join("").trim())),
        ),
      ),
    ]),
  );
}

try {
  start(await tracesOfPage());
} catch (error) {
  document.getElementById("app")!.append(el("p", { role: "alert" }, `The trace cannot be shown: ${error}`));
  throw error;
}
