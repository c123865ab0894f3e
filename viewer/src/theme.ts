// Light or dark: what the system says, until somebody chooses.

import { el } from "./dom";

/** `changed` is called whenever the colours are others. */
export function themeButton(changed: () => void): HTMLButtonElement {
  const button = el("button", { type: "button" }, "Light or dark");
  button.addEventListener("click", () => {
    const dark = getComputedStyle(document.documentElement).colorScheme === "dark";
    document.documentElement.dataset.theme = dark ? "light" : "dark";
    changed();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", changed);
  return button;
}
