// The job that the page looks at: its preview and progress while it runs, then its clip and what to do with it.

import { call, contentPath, download } from "./api.js";
import { clipView } from "./clips.js";
import { fill, h, icon } from "./dom.js";
import { follow, isFinal } from "./events.js";
import { duration, sentence } from "./format.js";
import { update } from "./jobs.js";
import { clipFacts } from "./plan.js";
import { previewCanvas } from "./preview.js";
import { hasClip } from "./thumb.js";
import { announce, failed, toast } from "./toast.js";

export const PHASES = {
  load: "Loading the model",
  condition: "Reading the inputs",
  sample: "Sampling",
  decode: "Decoding frames",
  write: "Writing the clip",
};
export const STATES = {
  queued: "Waiting",
  in_progress: "Running",
  cancelling: "Stopping",
  cancelled: "Cancelled",
  completed: "Done",
  failed: "Failed",
  interrupted: "Interrupted",
};
const FORMATS = [
  ["video", "mp4", "MP4 video, with its recipe"],
  ["gif", "gif", "GIF"],
  ["webp", "webp", "Animated WebP"],
  ["zip", "zip", "Frames as PNG (zip)"],
  ["recipe", "json", "Recipe (JSON)"],
];
/** What holds all clips of a batch. */
const WHOLE = new Set(["zip", "recipe"]);

/**
 * The panel: {element, watch(video or null), destroy()}. ``actions(video, clip)`` gives buttons for a finished job, of
 * which clip() is shown.
 */
export function screen({ actions, empty }) {
  const element = h("section", { class: "screen", "aria-label": "Clip" });
  let stop = new AbortController();
  let cleanup = [];
  let watched = null;

  function clear() {
    stop.abort();
    stop = new AbortController();
    for (const each of cleanup) each();
    cleanup = [];
  }
  function watch(video) {
    const same = video && watched && video.id === watched.id;
    if (same && isFinal(video) === isFinal(watched)) return; // its events keep it up to date
    clear();
    watched = video;
    if (!video) return void fill(element, empty());
    if (isFinal(video)) return void finished(video);
    running(video);
  }

  function running(video) {
    const { signal } = stop;
    const view = progressView(video);
    cleanup.push(view.destroy);
    fill(element, view.element);
    follow(
      video.id,
      (kind, data) => {
        if (signal.aborted) return;
        if (kind === "status") {
          watched = { ...watched, ...data };
          update(watched);
          if (isFinal(watched)) {
            announce(`${STATES[watched.status]}: ${watched.prompt || "clip"}`);
            clear();
            return void finished(watched);
          }
        }
        view.event(kind, data);
      },
      signal,
    ).catch((error) => signal.aborted || fill(element, problem(error.message)));
  }

  function finished(video) {
    watched = video;
    const settled = video.settled ?? {};
    const result = video.result ?? {};
    const words = { ...settled, ...Object.fromEntries(Object.entries(result).filter(([, value]) => value !== null)) };
    const parts = [];
    let made = null;
    if (hasClip(video)) {
      made = clipView(video, words);
      cleanup.push(made.destroy);
      parts.push(made.element);
    } else parts.push(h("div", { class: "screen-frame blank" }, icon(video.status === "failed" ? "close" : "make")));
    if (video.status !== "completed") parts.push(ending(video));
    parts.push(caption(video, words));
    parts.push(h("div", { class: "actions" }, made && downloads(video, made.clip), actions(video, made?.clip)));
    fill(element, parts);
  }

  return { element, watch, current: () => watched, destroy: clear };
}

/** Why a job has no finished clip, in the package's sentence. */
function ending(video) {
  const partial = hasClip(video) ? "The partial clip was kept." : "";
  if (video.status === "cancelled") return h("p", { class: "note" }, `Cancelled. ${partial}`);
  if (video.status === "interrupted")
    return h("p", { class: "note" }, `Interrupted: the service stopped while it ran. ${partial}`);
  return problem(video.error?.message ?? "the job failed");
}

const problem = (message) => h("p", { class: "error-box", role: "alert" }, sentence(message));

function caption(video, words) {
  const took =
    video.completed_at && video.started_at ? `took ${duration(video.completed_at - video.started_at)}` : null;
  const facts = words.frames && words.fps ? clipFacts({ clips: 1, ...words }) : [];
  return h(
    "div",
    { class: "caption" },
    h("p", { class: "caption-prompt" }, video.prompt || sentence(words.task ?? "clip")),
    h(
      "p",
      { class: "muted" },
      [video.model, ...facts, words.seed !== undefined && `seed ${words.seed}`, took].filter(Boolean).join(" · "),
    ),
    video.notes?.length
      ? h(
          "ul",
          { class: "reasons" },
          [...new Set(video.notes)].map((each) => h("li", {}, sentence(each))),
        )
      : null,
  );
}

/** The menu of formats to save; clip() is the one of a batch that is saved. */
export function downloads(video, clip) {
  const name =
    (video.prompt || video.id)
      .toLowerCase()
      .replace(/[^\p{L}\p{N}]+/gu, "-")
      .replace(/^-|-$/g, "")
      .slice(0, 60) || "clip";
  const menu = h(
    "details",
    { class: "menu" },
    h("summary", { class: "button" }, icon("down"), "Download"),
    h(
      "div",
      { class: "menu-items" },
      FORMATS.map(([variant, suffix, label]) =>
        h("button", { type: "button", onclick: () => save(variant, suffix) }, label),
      ),
    ),
  );
  menu.addEventListener(
    "keydown",
    (event) => event.key === "Escape" && ((menu.open = false), menu.querySelector("summary").focus()),
  );
  menu.addEventListener(
    "focusout",
    (event) => event.relatedTarget && !menu.contains(event.relatedTarget) && (menu.open = false),
  );
  async function save(variant, suffix) {
    menu.open = false;
    const slow = setTimeout(() => (converting = toast(`Writing the ${suffix}…`, { stays: 300_000 })), 600);
    let converting = null;
    try {
      const one = WHOLE.has(variant) ? 0 : clip();
      await download(contentPath(video.id, variant, one), `${name}${one ? `-${one + 1}` : ""}.${suffix}`);
    } catch (error) {
      failed(error);
    } finally {
      clearTimeout(slow);
      converting?.();
    }
  }
  return menu;
}

/** Preview, phases, progress and the buttons that stop a job. */
function progressView(video) {
  const settled = video.settled ?? {};
  const preview = previewCanvas(settled.fps);
  const waiting = h(
    "div",
    { class: "waiting" },
    h("span", { class: "pulse" }),
    h("span", { class: "waiting-word" }, "Waiting for its turn"),
  );
  const frame = h("div", { class: "screen-frame" }, waiting);
  const bar = h("progress", { max: 100, value: video.progress ?? 0, "aria-label": "Progress" });
  const phase = h("span", { class: "phase" }, STATES[video.status]);
  const eta = h("span", { class: "muted" });
  const stages = stageList(settled);
  const notes = h("ul", { class: "reasons" });
  const seen = new Set();
  const cancel = h("button", { type: "button", class: "quiet", onclick: () => end(false) }, "Cancel");
  const keep = h(
    "button",
    { type: "button", class: "quiet", title: "Stop, and keep the clip as far as it is", onclick: () => end(true) },
    "Stop and keep partial clip",
  );
  const element = h(
    "div",
    { class: "stack" },
    frame,
    h("div", { class: "progress-row" }, phase, eta),
    bar,
    stages.element,
    h("p", { class: "caption-prompt" }, video.prompt || ""),
    notes,
    h("div", { class: "actions" }, cancel, keep),
  );
  let started = video.status !== "queued";
  let stage = "base";

  async function end(keepPartial) {
    cancel.disabled = keep.disabled = true;
    phase.textContent = "Stopping";
    try {
      const after = await call("POST", `/v1/videos/${video.id}/cancel?keep_partial=${keepPartial}`, {});
      update(after);
      if (after.status === "completed") toast("The clip was finished before it could be cancelled.");
    } catch (error) {
      cancel.disabled = keep.disabled = false;
      failed(error);
    }
  }
  function note(message) {
    if (!message || seen.has(message)) return;
    seen.add(message);
    notes.append(h("li", {}, sentence(message)));
  }
  function state(data) {
    started ||= data.status === "in_progress";
    keep.hidden = !started;
    if (Number.isFinite(data.progress)) bar.value = Math.max(bar.value, data.progress);
    if (data.status === "queued") {
      const place = data.queue_position;
      phase.textContent = "Waiting";
      eta.textContent = Number.isFinite(place) ? `${place === 0 ? "next" : `number ${place + 1}`} in the queue` : "";
    } else if (data.status === "cancelling") phase.textContent = "Stopping";
    else waiting.lastElementChild.textContent = "Starting";
    (data.notes ?? []).forEach(note);
  }
  const HANDLERS = {
    status: state,
    phase(data) {
      stage = data.stage ?? stage;
      const words = PHASES[data.name] ?? sentence(data.name);
      phase.textContent = data.detail ? `${words}: ${data.detail}` : words;
      waiting.lastElementChild.textContent = words;
      stages.at(data.name, stage);
      announce(words);
    },
    step(data) {
      stage = data.stage ?? stage;
      stages.at("sample", stage);
      phase.textContent = `Sampling${stages.several ? ` (${stage})` : ""}, step ${data.index} of ${data.total}`;
      eta.textContent = data.eta ? `${duration(data.eta)} left` : "";
      if (Number.isFinite(data.progress)) bar.value = data.progress;
      else if (Number.isFinite(data.share)) bar.value = Math.max(bar.value, data.share * 95);
    },
    preview(data) {
      if (!preview.element.isConnected) fill(frame, preview.element, h("span", { class: "live" }, "Preview"));
      element.dataset.previews = Number(element.dataset.previews ?? 0) + 1;
      preview.show(data).catch(() => {});
    },
    note: (data) => note(data.message),
  };
  state(video);
  return { element, event: (kind, data) => HANDLERS[kind]?.(data), destroy: preview.destroy };
}

/** The stages and phases of a job as a line of words, the current one marked. */
function stageList(settled) {
  const names = settled.stages ?? [];
  const stages = names.length ? names : ["base"];
  const several = stages.length > 1;
  const order = ["load", "condition", ...stages.map((each) => `sample ${each}`), "decode", "write"];
  const words = { load: "Load", condition: "Read", decode: "Decode", write: "Write" };
  const items = order.map((each) => h("li", {}, words[each] ?? (several ? `Sample ${each.slice(7)}` : "Sample")));
  const element = h("ol", { class: "stages", "aria-label": "Phases" }, items);
  let reached = -1;
  return {
    element,
    several,
    at(phase, stage) {
      const name = phase === "sample" ? `sample ${stages.includes(stage) ? stage : stages[0]}` : phase;
      const now = order.indexOf(name);
      if (phase === "decode" && stage !== stages.at(-1)) return; // a later stage samples after it
      if (now < reached) return; // a later stage loads and reads again
      reached = Math.max(reached, now);
      items.forEach((each, at) => {
        each.classList.toggle("done", at < reached);
        if (at === reached) each.setAttribute("aria-current", "step");
        else each.removeAttribute("aria-current");
      });
    },
  };
}
