// Going from token to token, by pointer and by key.

import type { Handlers, Pane } from "./pane";
import type { Focus, State } from "./state";
import type { Run } from "./trace";

export const WALK_KEYS =
  "Arrow keys move from token to token, Home and End to a thread's first and last one. Enter goes to what the token " +
  "reads most, Backspace goes back, Escape lets go.";

export class Walk {
  private readonly past: Focus[] = [];

  /**
   * @param panes may be filled later.
   * @param refresh draws what has changed.
   * @param arrived is told of every token that was gone to.
   * @param more keys that do something else.
   */
  constructor(
    private readonly panes: Pane<Run>[],
    private readonly state: State,
    private readonly refresh: () => void,
    private readonly arrived: () => void,
    private readonly more: Record<string, (at: Focus) => void> = {},
  ) {}

  /** What the pane of that number does when it is pointed at, clicked, or gets a key. */
  handlers(number: number): Handlers {
    const { state } = this;
    return {
      hover: (at) => {
        if (state.pinned) return;
        if (at?.thread === state.focus?.thread && at?.step === state.focus?.step && at !== null) return;
        if (at === null && state.focus === null) return;
        state.focus = at && { pane: number, ...at };
        this.refresh();
      },
      pick: (at) => {
        const { focus } = state;
        const same = state.pinned && focus?.pane === number && focus.thread === at.thread && focus.step === at.step;
        state.pinned = !same;
        state.focus = { pane: number, ...at };
        this.arrived();
        this.refresh();
      },
      key: (event) => this.press(event, number),
    };
  }

  go(pane: number, thread: number, step: number): void {
    const { state } = this;
    if (state.focus) this.past.push(state.focus);
    state.focus = { pane, thread, step };
    state.pinned = true;
    if (step > state.now) state.now = step;
    this.panes.forEach((each, n) => each.reveal(n === pane ? thread : null, Math.min(step, each.trace.steps - 1)));
    this.arrived();
    this.refresh();
  }

  private press(event: KeyboardEvent, number: number): void {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const { state } = this;
    const pane = this.panes[number];
    const { threads, steps } = pane.trace;
    const at = state.focus?.pane === number ? state.focus : { pane: number, thread: 0, step: threads[0].given - 1 };
    const within = (thread: number, step: number): void => {
      const n = Math.max(0, Math.min(threads.length - 1, thread));
      const top = threads[n].texts.length - 1;
      if (top >= 0) this.go(number, n, Math.max(0, Math.min(top, step)));
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
      End: () => within(at.thread, steps),
      Enter: () => {
        const [most] = pane.arcs();
        if (state.focus && most) within(most.thread, most.step);
      },
      Backspace: () => {
        const before = this.past.pop();
        if (!before) return;
        state.focus = null;
        this.go(before.pane, before.thread, before.step);
      },
      Escape: () => {
        state.focus = null;
        state.pinned = false;
        this.refresh();
      },
    };
    const action: ((at: Focus) => void) | undefined = actions[event.key] ?? this.more[event.key];
    if (!action) return;
    event.preventDefault();
    action(at);
  }
}
