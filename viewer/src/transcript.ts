// The texts of the threads, to be read in lines.

import { el, foreign } from "./dom";
import { inOneLine } from "./pane";
import type { Run } from "./trace";

export function transcript(runs: Run[], names: string[]): HTMLElement {
  return el(
    "details",
    { class: "transcript" },
    el("summary", {}, "Texts of the threads"),
    ...runs.flatMap((run, number) => [
      el("h2", {}, names[number]),
      ...run.threads.map((thread, n) =>
        el(
          "article",
          {},
          el("h3", {}, inOneLine(thread, n === run.chosen)),
          el("p", {}, foreign(thread.texts.slice(thread.given).join("").trim())),
        ),
      ),
    ]),
  );
}
