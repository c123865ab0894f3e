// Elements whose text is always text: nothing here parses HTML.

type Child = Node | string | null | false;

export function el<Name extends keyof HTMLElementTagNameMap>(
  name: Name,
  attributes: Record<string, string | number | boolean> = {},
  ...children: Child[]
): HTMLElementTagNameMap[Name] {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === true) made.setAttribute(key, "");
    else if (value !== false) made.setAttribute(key, String(value));
  }
  for (const child of children) if (child !== null && child !== false) made.append(child);
  return made;
}

/** Text of a model or a user: isolated, so that right-to-left letters do not turn what stands around it. */
export const foreign = (text: string): HTMLElement => el("bdi", {}, text);

export function option(value: string | number, text: string): HTMLOptionElement {
  return el("option", { value }, text);
}
