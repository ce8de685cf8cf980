// Light, dark, or what the system prefers.

import { fill, icon, iconButton } from "./dom.js";
import { remember, remembered } from "./store.js";

const THEMES = ["auto", "light", "dark"];
const DRAWINGS = { auto: "auto", light: "sun", dark: "moon" };
const WORDS = { auto: "Theme: as the system", light: "Theme: light", dark: "Theme: dark" };

export function applyTheme(name = remembered("theme", "auto")) {
  document.documentElement.dataset.theme = name;
}

/** The button that goes through the themes. */
export function themeButton() {
  const now = () => remembered("theme", "auto");
  const button = iconButton(DRAWINGS[now()], WORDS[now()], () => {
    const next = THEMES[(THEMES.indexOf(now()) + 1) % THEMES.length];
    remember("theme", next);
    applyTheme(next);
    fill(button, icon(DRAWINGS[next]));
    button.title = WORDS[next];
    button.setAttribute("aria-label", WORDS[next]);
  });
  return button;
}
