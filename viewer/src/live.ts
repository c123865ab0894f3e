// The live page: asks the server that it comes from, and shows the threads while they write.

import "./style.css";
import { Dropped, Refusal, answer, key, samplePuzzles, servedModel, viewerPage } from "./api";
import { el, foreign, option } from "./dom";
import { LiveRun } from "./liverun";
import { TokenPanel } from "./panels";
import { Pane } from "./pane";
import { shareLinks } from "./share";
import { NAMES, titleOf, type State } from "./state";
import { themeButton } from "./theme";
import { transcript } from "./transcript";
import { Walk, WALK_KEYS } from "./walk";

const TASKS: Record<string, string> = { countdown: "Countdown", "chain-sum": "Chained sums" };
/** Steps for which a strong arc stays while threads write. */
const TRAIL = 24;
/** Seconds between two tries to reach a server that has gone. */
const LONGEST_WAIT = 5;
/** Seconds without a word from the server, after which this is told. */
const SILENT = 5;

type Strategy = LiveRun["strategy"];

const still = matchMedia("(prefers-reduced-motion: reduce)");
const prompt = el("textarea", { rows: 2, required: true, placeholder: "Use 9, 14 and 6 to make 30" });
const puzzles = el("select", {}, option("", "Pick a puzzle"));
const threads = el("input", { type: "number", min: 1, max: 256, value: 8, required: true });
const strategy = el("select", {}, ...Object.entries(NAMES).map(([name, text]) => option(name, text)));
strategy.append(option("both", "Both, one above the other"));
const secret = el("input", { type: "password", autocomplete: "off", value: key.get() });
const keyLabel = el("label", { hidden: true }, "API key ", secret);
const stop = el("button", { type: "button", hidden: true }, "Stop");
const form = el(
  "form",
  { class: "ask" },
  el("label", { class: "wide" }, "Prompt ", prompt),
  el("label", {}, "or ", puzzles),
  el("label", {}, "Threads ", threads),
  el("label", {}, "Strategy ", strategy),
  keyLabel,
  el("button", { type: "submit", class: "go" }, "Run"),
  stop,
);
puzzles.setAttribute("aria-label", "Pick a puzzle");
const trouble = el("p", { role: "alert", class: "trouble" });
const status = el("p", { role: "status", class: "hidden" });
const silent = el("span", {});
const again = el("button", { type: "button" }, "Try again");
/** Counts seconds, hence it is no alert; the status says it once. */
const silence = el(
  "p",
  { class: "trouble silence", hidden: true },
  silent,
  " It may be busy; what has come stays here. Wait, stop, or ask for the same text anew. ",
  again,
);
const stage = el("div", { class: "stage" });
const intro = el(
  "p",
  { class: "faint" },
  "Ask something, or pick a puzzle: threads write side by side, a column each, and read one another while they write. " +
    "An arc leads from a token to what its thread read most when it chose that token.",
);

let model = "";
let halt = new AbortController();
let redraw = (): void => {};
let resize = (): void => {};

document.getElementById("app")!.append(
  el(
    "header",
    { class: "page" },
    el("div", { class: "controls title" }, el("h1", {}, "LACE: threads at work"), themeButton(() => resize())),
    form,
    trouble,
    silence,
    intro,
  ),
  stage,
  status,
);

puzzles.addEventListener("change", () => {
  if (puzzles.value) prompt.value = puzzles.value;
});
prompt.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  form.requestSubmit();
});
stop.addEventListener("click", () => halt.abort());
form.addEventListener("submit", async (event) => {
  event.preventDefault();
  halt.abort();
  halt = new AbortController();
  trouble.textContent = "";
  if (!keyLabel.hidden) key.set(secret.value.trim());
  if (!model) await connect();
  if (model) await run(halt.signal);
});
new ResizeObserver(() => resize()).observe(document.body);
void connect();

let connecting: Promise<void> | null = null;
let later = 0;

/** Asks what is served, and for puzzles to pick from; for a key, if the server wants one. Once at a time. */
function connect(): Promise<void> {
  clearTimeout(later);
  connecting ??= ask().finally(() => (connecting = null));
  return connecting;
}

async function ask(): Promise<void> {
  try {
    model = await servedModel();
    const drawn = await samplePuzzles(Math.floor(Math.random() * 2 ** 32));
    for (const [task, text] of Object.entries(TASKS)) {
      const group = el("optgroup", { label: text });
      for (const puzzle of drawn) if (puzzle.task === task) group.append(option(puzzle.prompt, puzzle.prompt));
      puzzles.append(group);
    }
    if (!prompt.value) prompt.value = drawn[0].prompt;
    trouble.textContent = "";
    keyLabel.hidden = true;
  } catch (error) {
    complain(error);
    if (error instanceof Dropped) later = setTimeout(connect, 1000 * LONGEST_WAIT);
  }
}

function complain(error: unknown): void {
  trouble.textContent = (error as Error).message;
  if (!(error instanceof Refusal) || error.status !== 401) return;
  trouble.textContent = "This server wants an API key.";
  keyLabel.hidden = false;
  secret.focus();
}

async function run(signal: AbortSignal): Promise<void> {
  const asked = prompt.value;
  const seed = Math.floor(Math.random() * Number.MAX_SAFE_INTEGER);
  const count = threads.valueAsNumber;
  const wanted = strategy.value === "both" ? (Object.keys(NAMES) as Strategy[]) : [strategy.value as Strategy];
  const runs = wanted.map((name) => new LiveRun(name, count));
  const ended = show(asked, runs, signal);
  intro.hidden = true;
  stop.hidden = false;
  status.textContent = `${count} threads are at work.`;
  const body = (name: Strategy) => ({
    model,
    messages: [{ role: "user", content: asked }],
    stream: true,
    seed,
    lace: { threads: count, strategy: name, expose: ["exchanges", "verdict", "trace"] },
  });
  try {
    // One after the other: the seconds of each are its own.
    for (const one of runs) await listen(one, body(one.strategy), signal);
    await ended(`lace-${seed}.html`);
  } catch (error) {
    if (!signal.aborted) complain(error);
  }
  if (signal !== halt.signal) return; // another run has begun
  stop.hidden = true;
  for (const one of runs) one.trouble = "stopped";
  redraw();
}

/**
 * Takes in a run's stream. One that breaks off is asked for again, and one that hangs if the reader wants it: the same
 * seed writes the same text.
 */
async function listen(one: LiveRun, body: object, signal: AbortSignal): Promise<void> {
  for (let tries = 1; ; tries++) {
    const anew = new AbortController();
    const watch = watchSilence(one, () => anew.abort());
    try {
      let begun = false;
      for await (const told of answer(body, AbortSignal.any([signal, anew.signal]), watch.heard)) {
        if (!begun) {
          one.restart();
          trouble.textContent = "";
        }
        begun = true;
        tries = 1;
        one.take(told);
        redraw();
      }
      return;
    } catch (error) {
      watch.end();
      if (anew.signal.aborted && !signal.aborted) continue;
      const wait = error instanceof Dropped ? Math.min(tries, LONGEST_WAIT) : (error as Refusal).retryAfter;
      if (!wait) throw error;
      one.trouble = `${(error as Error).message}; trying again in ${wait} s`;
      trouble.textContent = one.trouble;
      redraw();
      await pause(wait, signal);
    } finally {
      watch.end();
    }
  }
}

/** Lets some seconds pass, less if the signal comes. */
function pause(seconds: number, signal: AbortSignal): Promise<void> {
  return new Promise((done) => {
    const timer = setTimeout(done, 1000 * seconds);
    signal.addEventListener("abort", () => (clearTimeout(timer), done()), { once: true });
  });
}

/** The page of the full viewer; asked for until the server gives it, since a run is worth more than a try. */
async function viewer(signal: AbortSignal): Promise<string> {
  for (let tries = 1; ; tries++) {
    try {
      const page = await viewerPage();
      trouble.textContent = "";
      return page;
    } catch (error) {
      if (!(error instanceof Dropped) || signal.aborted) throw error;
      const wait = Math.min(tries, LONGEST_WAIT);
      trouble.textContent = `${error.message}; trying again in ${wait} s`;
      await pause(wait, signal);
    }
  }
}

/** Tells of a connection that is open and brings nothing, until it brings something again. */
function watchSilence(one: LiveRun, tryAgain: () => void): { heard: () => void; end: () => void } {
  let last = performance.now();
  const tell = () => {
    const seconds = Math.floor((performance.now() - last) / 1000);
    const before = one.silence;
    one.silence = seconds >= SILENT ? seconds : 0;
    if (one.silence === before) return;
    if (one.silence === 0) hideSilence();
    else silence.hidden = false;
    silent.textContent = `The server has been silent for ${one.silence} s.`;
    if (before === 0) status.textContent = silent.textContent;
    else if (one.silence === 0) status.textContent = "The server goes on.";
    redraw();
  };
  const timer = setInterval(tell, 250);
  again.onclick = tryAgain;
  const heard = () => {
    last = performance.now();
    if (one.silence) tell();
  };
  const end = () => {
    clearInterval(timer);
    hideSilence();
    one.silence = 0;
  };
  return { heard, end };
}

function hideSilence(): void {
  if (document.activeElement === again) stop.focus(); // who goes by key stays beside it
  silence.hidden = true;
}

/** Puts columns for these runs on the stage; what it returns adds what belongs to their end. */
function show(asked: string, runs: LiveRun[], signal: AbortSignal): (name: string) => Promise<void> {
  const state: State = {
    layer: 0,
    view: { head: 0, gated: true },
    heat: "read",
    now: 0,
    trail: TRAIL,
    window: 0,
    span: null,
    playing: false,
    focus: null,
    pinned: false,
  };
  const panes: Pane<LiveRun>[] = [];
  const names = runs.map((one) => titleOf(one.strategy, "the same model"));
  const walk = new Walk(panes, state, refresh, () => (status.textContent = token.inWords()));
  runs.forEach((one, number) => panes.push(new Pane(one, number, names[number], state, walk.handlers(number))));
  const token = new TokenPanel(panes, state, walk.go.bind(walk));
  const end = el("div", { class: "end" });
  stage.replaceChildren(
    el("p", { class: "prompt" }, foreign(asked.trim())),
    el(
      "main",
      {},
      el("div", { class: "panes rows" }, ...panes.map((pane) => pane.element)),
      el("aside", { "aria-label": "About the token and the run" }, end, token.element),
    ),
    el("p", { id: "keys", class: "keys" }, `${WALK_KEYS} The strip beside a token says how much it took from others.`),
  );
  let last = 0;
  let waiting = false;
  let stale = true;
  let arrived = (): void => {};

  /** Looks in the next frame whether more can be shown. */
  function look(): void {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(frame);
  }

  function refresh(): void {
    stale = true;
    look();
  }

  function frame(time: number): void {
    waiting = false;
    const passed = still.matches ? Infinity : Math.min(0.1, (time - last) / 1000);
    last = time;
    const before = runs.map((one) => one.steps);
    if (runs.map((one) => one.advance(passed)).some(Boolean)) look();
    const moved = runs.some((one, number) => one.steps !== before[number]);
    const says = panes.map((pane) => pane.update()).some(Boolean);
    if (moved || says || stale) draw(); // steps are shown more slowly than frames come
    stale = false;
    if (runs.every((one) => one.note === null)) arrived();
  }

  function draw(): void {
    const ended = state.trail === Infinity;
    state.now = Math.max(0, ...runs.map((one) => one.steps - 1));
    state.trail = runs.every((one) => one.note === null) ? Infinity : TRAIL;
    panes.forEach((pane) => {
      if (!ended) pane.follow();
      pane.draw();
    });
    token.draw();
  }

  redraw = look;
  resize = () => {
    panes.forEach((pane) => pane.resize());
    refresh();
  };
  panes.forEach((pane) => pane.scroller.addEventListener("scroll", refresh, { passive: true }));
  resize();

  return async (name) => {
    await new Promise<void>((done) => {
      arrived = done;
      signal.addEventListener("abort", () => done(), { once: true });
      refresh();
    });
    if (signal.aborted) return;
    panes.forEach((pane) => pane.revealStrongest());
    status.textContent = panes.map((pane) => pane.inWords()).join(" ");
    stage.append(transcript(runs, names));
    end.append(...shareLinks(await viewer(signal), runs.map((one) => one.trace!), name));
  };
}
