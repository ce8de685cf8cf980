// The page: navigation, the view of the address, signing in, and what is shown on every view.

import { call, setToken } from "./api.js";
import { fill, h, icon } from "./dom.js";
import { active, current, refresh, subscribe, waiting } from "./jobs.js";
import { go, start } from "./router.js";
import { applyTheme, themeButton } from "./theme.js";
import { sentence } from "./format.js";

const VIEWS = { make: "Make", timeline: "Timeline", gallery: "Gallery", queue: "Queue", models: "Models" };
const main = document.getElementById("main");
let leave = null;
let visit = 0;

applyTheme();

function navigation() {
  const links = Object.entries(VIEWS).map(([name, title]) =>
    h("a", { href: `#${name}`, dataset: { view: name } }, icon(name), h("span", {}, title)),
  );
  const count = h("span", { class: "count", hidden: true });
  links.find((each) => each.dataset.view === "queue").append(count);
  subscribe(() => {
    const jobs = active().length + waiting().length;
    count.hidden = !jobs;
    count.textContent = jobs;
    count.title = `${jobs} running or waiting`;
    document.getElementById("offline").hidden = current.error?.status !== 0;
  });
  document.getElementById("nav").append(...links);
  document.getElementById("tools").append(themeButton());
}

async function show({ view, rest, query }) {
  if (!VIEWS[view]) return go("make");
  visit += 1;
  const mine = visit;
  leave?.();
  leave = null;
  for (const link of document.querySelectorAll("#nav a")) {
    if (link.dataset.view === view) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = `${VIEWS[view]} – Kinema`;
  try {
    const module = await import(`./${view}.js`);
    if (mine !== visit) return undefined;
    const host = h("div", { class: "view", dataset: { view } });
    fill(main, host);
    const left = await module.mount(host, { rest, query });
    if (mine === visit) leave = left ?? null;
    else left?.();
  } catch (error) {
    if (mine === visit && error.status !== 401)
      fill(
        main,
        h(
          "div",
          { class: "page" },
          h("p", { class: "error-box", role: "alert" }, sentence(error.message)),
          h("button", { type: "button", class: "quiet", onclick: () => location.reload() }, "Try again"),
        ),
      );
  }
  return undefined;
}

/** Ask for the token of the service, once at a time. */
function signIn() {
  if (document.querySelector("dialog.sign-in")) return;
  const input = h("input", { type: "password", autocomplete: "current-password", required: true, id: "token" });
  const wrong = h("p", { class: "error-text", role: "alert" });
  const dialog = h(
    "dialog",
    { class: "sign-in", "aria-labelledby": "sign-in-title" },
    h(
      "form",
      { onsubmit: (event) => (event.preventDefault(), attempt()) },
      h("h1", { id: "sign-in-title" }, "Sign in"),
      h(
        "p",
        { class: "muted" },
        "This service asks for the token with which it was started. It is kept until you close this tab.",
      ),
      h("label", { htmlFor: "token", class: "field-label" }, "Token"),
      input,
      wrong,
      h("button", { type: "submit", class: "primary" }, "Sign in"),
    ),
  );
  async function attempt() {
    setToken(input.value.trim());
    try {
      await call("GET", "/v1/queue");
      dialog.close();
      dialog.remove();
      location.reload();
    } catch (error) {
      setToken(null);
      wrong.textContent = error.status === 401 ? "This is not the token." : sentence(error.message);
    }
  }
  dialog.addEventListener("cancel", (event) => event.preventDefault());
  document.body.append(dialog);
  dialog.showModal();
}

addEventListener("kinema:token", signIn);
document.querySelector(".skip").addEventListener("click", (event) => (event.preventDefault(), main.focus()));
navigation();
start(show);
refresh();
