// Short messages at the edge of the page, read aloud; errors stay until they are closed.

import { h, icon } from "./dom.js";

const STAYS = 6000;

/** Show a message. ``action``: {label, run} adds a button, such as Undo. Returns a function that removes it. */
export function toast(message, { error = false, action = null, stays = STAYS } = {}) {
  const host = document.getElementById("toasts");
  const remove = () => element.remove();
  const element = h(
    "div",
    { class: error ? "toast error" : "toast", role: error ? "alert" : "status" },
    h("span", {}, message),
    action && h("button", { type: "button", class: "link", onclick: () => (remove(), action.run()) }, action.label),
    h(
      "button",
      { type: "button", class: "icon-button", "aria-label": "Close this message", onclick: remove },
      icon("close"),
    ),
  );
  host.append(element);
  while (host.childElementCount > 4) host.firstElementChild.remove();
  if (!error || stays !== STAYS) setTimeout(remove, stays);
  return remove;
}

/** Show an exception, unless it says that something was cancelled. */
export function failed(error) {
  if (error?.name === "AbortError" || error?.status === 401) return;
  toast(error.message ?? String(error), { error: true });
}

/** Say something to screen readers alone. */
export function announce(text) {
  const region = document.getElementById("announce");
  if (region.textContent !== text) region.textContent = text;
}
