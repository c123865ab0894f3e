// The full viewer for what was seen here, as one file to open or to keep.

import { el } from "./dom";

/** Links to a page of the viewer with these recordings, as the server has sent them. */
export function shareLinks(viewer: string, traces: string[], name: string): HTMLElement[] {
  const blocks = traces.map((trace) => `<script class="trace" type="application/octet-stream">${trace}</script>`);
  const page = viewer.replace("<!-- traces -->", () => blocks.join("\n    "));
  const href = URL.createObjectURL(new Blob([page], { type: "text/html" }));
  return [
    el("a", { href, target: "_blank" }, "Open in the full viewer"),
    el("a", { href, download: name }, "Save as a file to share"),
  ];
}
