// State that survives a reload: one JSON object in localStorage.

const KEY = "kinema.studio";
const VERSION = 1;

function load() {
  try {
    const found = JSON.parse(localStorage.getItem(KEY));
    if (found && found.version === VERSION && typeof found === "object") return found;
  } catch {
    // absent, damaged or forbidden: begin anew
  }
  return { version: VERSION };
}

const state = load();
let waiting = 0;

/** A remembered value, or ``initial``. */
export function remembered(key, initial) {
  return key in state ? state[key] : initial;
}

/** Remember a value; written shortly afterwards, and when the page is hidden. */
export function remember(key, value) {
  state[key] = value;
  if (!waiting) waiting = setTimeout(write, 200);
}

function write() {
  clearTimeout(waiting);
  waiting = 0;
  try {
    localStorage.setItem(KEY, JSON.stringify(state));
  } catch {
    // full or forbidden: the page works, and forgets
  }
}

addEventListener("pagehide", () => waiting && write());
addEventListener("visibilitychange", () => waiting && document.hidden && write());
