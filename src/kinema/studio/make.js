// The view Make: the settings on one side; on the other the clip that is looked at, and the latest others.

import { call } from "./api.js";
import { definitions, models } from "./catalogue.js";
import { clipFile } from "./clips.js";
import { fill, h, icon } from "./dom.js";
import { dropAnywhere } from "./drop.js";
import { isFinal } from "./events.js";
import { sentence } from "./format.js";
import { current, forget, refresh, subscribe, update } from "./jobs.js";
import { orderOfVideo, valuesOf } from "./order.js";
import { STATES, screen } from "./screen.js";
import { settingsPanel } from "./settings.js";
import { remember, remembered } from "./store.js";
import { hasClip, thumbnail } from "./thumb.js";
import { announce, failed, toast } from "./toast.js";

const SHOWN = 12;
const CONTINUE = ["extend", "edit", "inpaint", "interpolate", "upscale", "animate"];
const UNDO = 6000;

/** Set the form that Make shows next: for "reuse settings" in other views. */
export function setForm(verb, values) {
  remember("verb", verb);
  remember("values", values);
}

/** Use a clip of a job as the input of a verb in the form that Make shows next. */
export async function setInput(verb, video, clip) {
  const file = await clipFile(video, clip);
  const input = verb === "animate" ? "image" : "video";
  const { start, end, seed, size, frames: count, ...kept } = remembered("values", {});
  setForm(verb, { ...kept, ...(input === "image" && count ? { frames: count } : {}), [input]: file });
}

export async function mount(root) {
  const [defined, rows] = await Promise.all([definitions(), models().catch(() => [])]);
  const view = makeView(defined, rows);
  fill(root, view.element);
  view.begin();
  return view.destroy;
}

function makeView(defined, rows) {
  const stop = new AbortController();
  const settings = settingsPanel(defined, rows, (video) => {
    update(video);
    watch(video, true);
    announce("In the queue");
    refresh();
  });
  const look = screen({ actions, empty });
  const strip = h("ul", { class: "strip", "aria-label": "Recent clips" });
  const element = h("div", { class: "make" }, settings.element, h("div", { class: "make-side" }, look.element, strip));
  let drawn = "";
  let finished = 0;

  function watch(video, scroll = false) {
    remember("watching", video?.id ?? null);
    look.watch(video);
    drawStrip();
    const below = look.element.getBoundingClientRect().top > innerHeight * 0.8;
    if (scroll && below) look.element.scrollIntoView({ block: "start" });
  }
  function empty() {
    const example = /"([^"]+)"/.exec(defined.verbs.get("generate")?.example ?? "")?.[1] ?? "a red ball rolls right";
    const use = () => settings.apply("generate", { ...settings.values(), prompt: example });
    return [
      h("div", { class: "screen-frame blank" }, icon("make")),
      h(
        "div",
        { class: "caption" },
        h("p", { class: "caption-prompt" }, "Your clip appears here"),
        h(
          "p",
          { class: "muted" },
          "Describe it and press Generate. While it runs you see a preview after each step. You can also drop an image ",
          "or a clip anywhere on this page.",
        ),
      ),
      h("div", { class: "actions" }, h("button", { type: "button", class: "quiet", onclick: use }, `Try “${example}”`)),
    ];
  }

  // ---------------------------------------------------------------------- what to do with a clip

  function actions(video, clip) {
    const order = video.request && orderOfVideo(video);
    const button = (name, words, onclick) =>
      h("button", { type: "button", class: "quiet", onclick }, icon(name), words);
    return [
      hasClip(video) && onward(video, clip),
      order && button("reuse", "Reuse settings", () => reuse(order)),
      order && hasClip(video) && button("dice", "Again, new seed", () => anew(order)),
      !hasClip(video) && button("retry", "Try again", () => retry(video)),
      button("trash", "Delete", () => remove(video)),
    ];
  }
  function onward(video, clip) {
    const names = CONTINUE.map((name) => h("option", { value: name }, sentence(name)));
    const chosen = h("select", { class: "compact", "aria-label": "Use this clip for" });
    chosen.append(h("option", { value: "" }, "Use clip for…"), ...names);
    chosen.addEventListener("change", async () => {
      const { value } = chosen;
      chosen.value = "";
      try {
        await setInput(value, video, clip());
        settings.apply(remembered("verb"), remembered("values"));
      } catch (error) {
        failed(error);
      }
    });
    return chosen;
  }
  function reuse(order) {
    const found = valuesOf(defined, order);
    settings.apply(found.verb, found.values);
    settings.element.scrollIntoView({ block: "nearest" });
    announce("The form has the settings of this clip");
  }
  async function queued(path, body) {
    try {
      const video = await call("POST", path, body);
      update(video);
      watch(video);
    } catch (error) {
      failed(error);
    }
  }
  const retry = (video) => queued(`/v1/videos/${video.id}/retry`, {});
  function anew({ request, ...others }) {
    const { seed, ...rest } = request;
    queued("/v1/videos", { ...others, request: rest });
  }
  function remove(video) {
    forget(video.id);
    watch(current.videos.find(hasClip) ?? null);
    let decided = false;
    const decide = (act) => () => {
      if (!decided) act();
      decided = true;
    };
    const finish = decide(() => call("DELETE", `/v1/videos/${video.id}`).catch(failed));
    const undo = decide(() => {
      refresh();
      watch(video);
    });
    setTimeout(finish, UNDO);
    addEventListener("pagehide", finish, { once: true });
    toast("The clip was deleted.", { action: { label: "Undo", run: undo }, stays: UNDO });
  }

  // ------------------------------------------------------------------------------ the latest clips

  function stripItem(video) {
    const watched = video.id === look.current()?.id;
    return h(
      "li",
      {},
      h(
        "button",
        {
          type: "button",
          class: `strip-item ${video.status}`,
          "aria-current": watched ? "true" : undefined,
          title: video.prompt || video.id,
          onclick: () => watch(video),
        },
        thumbnail(video),
        h("span", { class: "strip-words" }, STATES[video.status]),
        h("span", { class: "visually-hidden" }, `: ${video.prompt || "clip"}`),
      ),
    );
  }
  function stripState() {
    const facts = current.videos.slice(0, SHOWN).map((each) => [each.id, each.status, each.progress]);
    return JSON.stringify([look.current()?.id, facts]);
  }
  function drawStrip() {
    drawn = stripState();
    const focused = strip.contains(document.activeElement) && document.activeElement.title;
    fill(strip, current.videos.slice(0, SHOWN).map(stripItem));
    strip.hidden = !current.videos.length;
    if (focused) [...strip.querySelectorAll("button")].find((each) => each.title === focused)?.focus();
  }
  function jobsChanged({ videos }) {
    const now = videos.find((each) => each.id === look.current()?.id);
    if (now) look.watch(now);
    const done = videos.filter((each) => each.status === "completed").length;
    if (done > finished && drawn) settings.ask(); // its time is known now
    finished = done;
    if (stripState() !== drawn) drawStrip();
  }
  /** Show the job that was looked at before a reload, else one that runs, else the latest clip. */
  async function begin() {
    settings.begin();
    look.watch(null);
    await refresh();
    const id = remembered("watching");
    const asked = () => (id ? call("GET", `/v1/videos/${id}`).catch(() => null) : null);
    const known = current.videos.find((each) => each.id === id) ?? (await asked());
    const { videos } = current;
    watch(known ?? videos.find((each) => !isFinal(each)) ?? videos.find(hasClip) ?? null);
  }

  const unsubscribe = subscribe(jobsChanged);
  dropAnywhere(element, settings.take, stop.signal);
  addEventListener(
    "keydown",
    (event) => {
      if (!(event.ctrlKey || event.metaKey) || event.key !== "Enter") return;
      event.preventDefault();
      settings.generate();
    },
    { signal: stop.signal },
  );

  return {
    element,
    begin,
    destroy() {
      stop.abort();
      unsubscribe();
      settings.destroy();
      look.destroy();
    },
  };
}
