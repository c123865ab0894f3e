// Puts the page together: controls, panes, panels, and what moves between them.

import "./style.css";
import { el, foreign, option } from "./dom";
import { MatrixPanel, TokenPanel } from "./panels";
import { Pane } from "./pane";
import { Search } from "./search";
import { HEATS, MARKS, titleOf, windowOf, withEnd, type Focus, type Heat, type Span, type State } from "./state";
import { themeButton } from "./theme";
import { Timeline } from "./timeline";
import { tracesOfPage, type Trace } from "./trace";
import { transcript } from "./transcript";
import { Walk, WALK_KEYS } from "./walk";

const KEYS =
  `${WALK_KEYS} n goes to the next mark, comma and full stop move the time by a step, Space plays, slash searches.`;
const WINDOW_KEYS =
  " b begins at the token the window of time that the matrix is about, e ends it there, c clears it; the pointer " +
  "draws it on the band above the timeline.";

function start(traces: Trace[]): void {
  const read = traces.find((trace) => trace.layers.length > 0);
  const steps = Math.max(...traces.map((trace) => trace.steps));
  const heads = Math.max(...traces.map((trace) => trace.heads));
  const state: State = {
    layer: read ? read.layers[read.busiestLayer()] : -1,
    view: { head: 0, gated: false },
    heat: read ? "gate" : "entropy",
    now: steps - 1,
    trail: 1,
    window: 0,
    span: null,
    playing: false,
    focus: null,
    pinned: false,
  };
  const status = el("p", { role: "status", class: "hidden" });
  const layers = [...new Set(traces.flatMap((trace) => trace.layers))].sort((a, b) => a - b);
  const titles = traces.map((trace) => titleOf(trace.strategy, trace.model));
  const alike = new Set(titles).size < titles.length;
  const names = titles.map((title, n) => (alike ? `${title}, recording ${n + 1}` : title));
  const panes: Pane[] = [];
  const tell = () => (status.textContent = token.inWords());
  const walk = new Walk(panes, state, refresh, tell, {
    n: toNextMark,
    ",": () => moveTo(state.now - 1),
    ".": () => moveTo(state.now + 1),
    " ": () => timeline.toggle(),
    "/": () => search.focus(),
    ...(read && {
      b: () => choose(withEnd(windowOf(state), "from", state.focus?.step ?? state.now)),
      e: () => choose(withEnd(windowOf(state), "to", state.focus?.step ?? state.now)),
      c: () => choose(null),
    }),
  });
  const go = walk.go.bind(walk);
  traces.forEach((trace, number) => panes.push(new Pane(trace, number, names[number], state, walk.handlers(number))));

  const timeline = new Timeline(panes, state, steps, moveTo, read ? choose : null);
  const matrix = new MatrixPanel(panes, state, steps, choose);
  const token = new TokenPanel(panes, state, go);
  const search = new Search(panes, go, refresh);

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
        select("Layer", layers.map((layer) => option(layer, String(layer))), String(state.layer), (value) => {
          state.layer = Number(value);
          tell();
        }),
        select(
          "Head",
          [option(0, "mean"), ...Array.from({ length: heads }, (_, head) => option(head + 1, String(head)))],
          "0",
          (value) => {
            state.view = { ...state.view, head: Number(value) };
            tell();
          },
        ),
        select("Weight", [option("alone", "attention"), option("gated", "attention times gate")], "alone", (value) => {
          state.view = { ...state.view, gated: value === "gated" };
          tell();
        }),
      ]
    : [];
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
    themeButton(resize),
  );

  document.getElementById("app")!.append(
    el(
      "header",
      { class: "page" },
      el("h1", {}, "What the threads read of each other"),
      el("p", { class: "prompt" }, foreign(traces[0].prompt.trim())),
      controls,
      signs(),
    ),
    el(
      "main",
      {},
      el("div", { class: "panes" }, ...panes.map((pane) => pane.element)),
      el("aside", { "aria-label": "About the token and its threads" }, matrix.element, token.element),
    ),
    timeline.element,
    transcript(traces, names),
    el("p", { id: "keys", class: "keys" }, read ? KEYS + WINDOW_KEYS : KEYS),
    ...legend(traces),
    status,
  );

  // --- what moves -----------------------------------------------------------------------------------------------

  function moveTo(now: number, playing = false): void {
    state.now = Math.max(0, Math.min(steps - 1, now));
    if (playing || !state.pinned) state.focus = null;
    if (playing) state.pinned = false;
    panes.forEach((pane) => pane.reveal(null, Math.min(state.now, pane.trace.steps - 1)));
    refresh();
  }

  /** Makes the matrix be about these steps, or again about those of the preset window; says so unless it is `quiet`. */
  function choose(span: Span | null, quiet = false): void {
    const within = (step: number) => Math.max(0, Math.min(steps - 1, Math.round(step)));
    state.span = span && { from: within(span.from), to: within(span.to) };
    if (!quiet) {
      const { from, to } = windowOf(state);
      status.textContent = `Who reads whom is about steps ${from} to ${to}${state.span ? "" : ", as time goes on"}.`;
    }
    refresh();
  }

  function toNextMark(at: Focus): void {
    const marks = panes[at.pane].trace.threads
      .flatMap((thread, n) => thread.marks.map((mark) => ({ thread: n, step: mark.step })))
      .sort((a, b) => a.step - b.step || a.thread - b.thread);
    const later = (mark: { thread: number; step: number }) =>
      mark.step > at.step || (mark.step === at.step && mark.thread > at.thread);
    const next = marks.find(later) ?? marks[0];
    if (next) go(at.pane, next.thread, next.step);
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
  resize();
}

function signs(): HTMLElement {
  const sign = (kind: string, text: string) => el("li", {}, el("span", { class: `sign ${kind}` }), text);
  return el(
    "ul",
    { class: "signs", "aria-label": "Signs" },
    sign("star", "speaks for all"),
    sign("right", "answer, verified right"),
    sign("wrong", "wrong"),
    ...Object.entries(MARKS).map(([kind, text]) => sign(kind, text)),
    sign("heat", "heat"),
  );
}

function legend(traces: Trace[]): HTMLElement[] {
  const gap = Math.max(...traces.map((trace) => trace.replayGap));
  return [
    "An arc leads from a token to what its thread read when it chose that token, one step before; its width and the " +
      "percentage are the weight. A faint arc stands behind a gate that is nearly closed; what comes through is attention " +
      "times gate. The strip beside a token is its heat.",
    `Log-probabilities of the recording and of the decoding differ by ${gap} nats at most.`,
  ].map((text) => el("p", { class: "keys" }, text));
}

try {
  start(await tracesOfPage());
} catch (error) {
  document.getElementById("app")!.append(el("p", { role: "alert" }, `The trace cannot be shown: ${error}`));
  throw error;
}
