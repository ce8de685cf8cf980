// Generate, in the timeline: what it will take, the job that runs, and its clip in the frames.

import { call } from "./api.js";
import { countOf } from "./clips.js";
import { fill, h, icon } from "./dom.js";
import { follow, isFinal } from "./events.js";
import { duration, sentence } from "./format.js";
import { current, refresh, update } from "./jobs.js";
import { PHASES } from "./screen.js";
import { announce, failed } from "./toast.js";

/** The panel: {element, generate(), plan(found), say(text, bad), destroy()}. */
export function jobPanel({ doc, defined, images, verb, needed }) {
  const words = h("p", { class: "muted plan-words", role: "status" });
  const button = h("button", { type: "button", class: "primary", onclick: generate }, icon("make"), "Generate");
  const phase = h("span", { class: "phase" });
  const bar = h("progress", { max: 100, value: 0, "aria-label": "Progress" });
  const cancel = h("button", { type: "button", class: "quiet small", onclick: end }, "Cancel");
  const running = h("div", { class: "stack", hidden: true }, h("div", { class: "progress-row" }, phase, cancel), bar);
  const problem = h("p", { class: "error-box", role: "alert", hidden: true });
  const element = h(
    "div",
    { class: "timeline-job" },
    words,
    problem,
    h("div", { class: "submit-row" }, button, h("span", { class: "muted keys" }, "Ctrl + Enter")),
    running,
  );
  let stop = new AbortController();
  let watched = null;

  function say(text, bad = false) {
    words.textContent = bad ? "" : text;
    problem.hidden = !bad || !text;
    problem.textContent = bad ? text : "";
  }
  function plan(found) {
    const facts = [
      `${found.width}×${found.height}`,
      `${found.frames} frames at ${Number(found.fps.toFixed(2))} fps`,
      `${found.steps} steps`,
      found.seconds && `about ${duration(found.seconds)}`,
    ];
    say(facts.filter(Boolean).join(" · "));
    const notes = found.notes.map(sentence);
    words.title = notes.join("\n");
  }
  async function generate() {
    if (button.disabled) return;
    const missing = needed();
    if (missing) return void say(missing, true);
    button.disabled = true;
    fill(button, icon("make"), "Sending…");
    try {
      const video = await call("POST", "/v1/videos", { document: await doc.forService(defined) });
      update(video);
      refresh();
      doc.remember({ video: video.id });
      watch(video);
      announce("In the queue");
    } catch (error) {
      say(sentence(error.message), true);
    }
    button.disabled = false;
    fill(button, icon("make"), sentence(verb()));
    return undefined;
  }
  function watch(video) {
    stop.abort();
    stop = new AbortController();
    const { signal } = stop;
    watched = video;
    running.hidden = false;
    bar.value = video.progress ?? 0;
    phase.textContent = "Waiting";
    element.dataset.video = video.id;
    delete element.dataset.done;
    follow(video.id, (kind, data) => !signal.aborted && hear(kind, data), signal).catch(
      (error) => signal.aborted || say(sentence(error.message), true),
    );
  }
  function hear(kind, data) {
    if (Number.isFinite(data.progress)) bar.value = Math.max(bar.value, data.progress);
    if (kind === "phase") phase.textContent = PHASES[data.name] ?? sentence(data.name);
    else if (kind === "step")
      phase.textContent = `Step ${data.index} of ${data.total}${data.eta ? `, ${duration(data.eta)} left` : ""}`;
    else if (kind === "preview") showPreview(data).catch(() => {});
    else if (kind === "status") {
      watched = { ...watched, ...data };
      update(watched);
      if (isFinal(watched)) finished();
      else phase.textContent = { queued: "Waiting", cancelling: "Stopping" }[watched.status] ?? phase.textContent;
    }
  }
  async function showPreview({ data, mime, frames }) {
    const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
    const blob = new Blob([bytes], { type: mime ?? "image/png" });
    const strip = await createImageBitmap(blob);
    const width = strip.width / frames;
    const parts = await Promise.all(
      Array.from({ length: frames }, (_, at) => createImageBitmap(strip, at * width, 0, width, strip.height)),
    );
    strip.close();
    if (watched && !isFinal(watched)) images.preview(parts);
    else parts.forEach((each) => each.close());
  }
  function finished() {
    running.hidden = true;
    images.preview(null);
    if (watched.status === "completed" || watched.result) {
      const facts = { ...watched.settled, ...watched.result };
      images.result({ id: watched.id, frames: facts.frames, fps: facts.fps });
      if (countOf(watched) > 1) say(`The first of ${countOf(watched)} clips is shown; all are in the gallery.`);
      announce("The clip is done");
    } else if (watched.status === "failed") say(sentence(watched.error?.message ?? "the job failed"), true);
    element.dataset.done = watched.status;
  }
  async function end() {
    try {
      update(await call("POST", `/v1/videos/${watched.id}/cancel`, {}));
    } catch (error) {
      failed(error);
    }
  }
  /** Find the job of before a reload again. */
  async function find() {
    const id = doc.state.editor.video;
    await null; // the view is not complete yet
    if (!id) return;
    const video =
      current.videos.find((each) => each.id === id) ??
      (await call("GET", `/v1/videos/${encodeURIComponent(id)}`).catch(() => null));
    if (!video) return;
    if (!isFinal(video)) watch(video);
    else if (video.status === "completed") {
      const facts = { ...video.settled, ...video.result };
      images.result({ id, frames: facts.frames, fps: facts.fps });
      images.show("inputs");
    }
  }
  find();
  return {
    element,
    generate,
    plan,
    say(text, bad) {
      fill(button, icon("make"), sentence(verb()));
      say(text, bad);
    },
    destroy: () => stop.abort(),
  };
}
