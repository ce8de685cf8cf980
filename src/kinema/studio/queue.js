// The view Queue: what runs, what waits, in an order that can be changed, and what ended.

import { call } from "./api.js";
import { fill, h, icon, iconButton } from "./dom.js";
import { follow, isFinal } from "./events.js";
import { ago, bytes, duration, sentence } from "./format.js";
import { active, current, forget, refresh, subscribe, update, waiting } from "./jobs.js";
import { previewCanvas } from "./preview.js";
import { go } from "./router.js";
import { STATES } from "./screen.js";
import { remember } from "./store.js";
import { hasClip, thumbnail } from "./thumb.js";
import { announce, failed } from "./toast.js";

const ENDED = 20;
const LIVE = 2;
/** Running jobs whose previews are shown; each holds a connection, of which a browser opens six. */

export function mount(root) {
  const pause = h("button", { type: "button", class: "quiet", onclick: () => hold(!current.queue.paused) });
  const summary = h("p", { class: "muted", "aria-live": "polite" });
  const running = h("ul", { class: "jobs", "aria-label": "Running" });
  const queued = h("ol", { class: "jobs", "aria-label": "Waiting" });
  const ended = h("ul", { class: "jobs", "aria-label": "Ended" });
  const workers = h("ul", { class: "workers" });
  const sections = {
    running: section("Running", running),
    waiting: section("Waiting", queued),
    ended: section("Ended", ended),
  };
  const empty = h(
    "div",
    { class: "blank-page" },
    icon("queue"),
    h("p", {}, "Nothing runs or waits."),
    h("a", { href: "#make", class: "button" }, "Make a clip"),
  );
  const live = new Map();
  let dragged = null;
  let drawn = "";

  async function act(method, path, body, after) {
    try {
      const answer = await call(method, path, body);
      if (answer?.object === "video") update(answer);
      after?.(answer);
    } catch (error) {
      failed(error);
    }
    await refresh();
  }
  const hold = (on) =>
    act("POST", `/v1/queue/${on ? "pause" : "resume"}`, {}, () =>
      announce(on ? "The queue is paused" : "The queue runs"),
    );
  const cancel = (video, keep = false) =>
    act("POST", `/v1/videos/${video.id}/cancel?keep_partial=${keep}`, {}, () => announce("Cancelled"));
  const retry = (video) => act("POST", `/v1/videos/${video.id}/retry`, {}, () => announce("In the queue again"));
  const remove = (video) => act("DELETE", `/v1/videos/${video.id}`, undefined, () => forget(video.id));

  /** Put a waiting job at a place in the list. */
  async function move(id, to) {
    const others = waiting()
      .map((each) => each.id)
      .filter((each) => each !== id);
    const at = Math.max(0, Math.min(to, others.length));
    current.queue = { ...current.queue, queued: others.toSpliced(at, 0, id) };
    draw();
    await act("POST", `/v1/videos/${id}/move`, { before: others[at] ?? null }, () =>
      announce(`Moved to place ${at + 1} of ${others.length + 1}`),
    );
  }

  /** The preview of a running job in place of its thumbnail; it outlives the rows, which are drawn again. */
  function liveThumb(video) {
    if (!live.has(video.id) && live.size >= LIVE) return thumbnail(video);
    if (!live.has(video.id)) {
      const [stop, preview] = [new AbortController(), previewCanvas(video.fps)];
      const share = h("span", { class: "thumb-share" });
      const box = h("span", { class: "thumb" }, share);
      live.set(video.id, { box, share, end: () => (stop.abort(), preview.destroy()) });
      const hear = (kind, data) => {
        if (kind !== "preview") return;
        if (!box.contains(preview.element)) fill(box, preview.element);
        preview.show(data).catch(() => {});
      };
      follow(video.id, hear, stop.signal).catch(() => {});
    }
    const { box, share } = live.get(video.id);
    share.textContent = `${video.progress ?? 0}%`;
    return box;
  }
  function endLive(running) {
    for (const [id, { end }] of live) {
      if (running.some((each) => each.id === id)) continue;
      end();
      live.delete(id);
    }
  }

  // ------------------------------------------------------------------------------- rows

  function words(video, facts) {
    return h(
      "div",
      { class: "job-words" },
      h(
        "a",
        { href: "#make", class: "job-title", onclick: () => remember("watching", video.id) },
        video.prompt || sentence(video.settled?.task ?? "clip"),
      ),
      h("span", { class: "muted" }, facts.filter(Boolean).join(" · ")),
    );
  }
  const size = ({ settled }) => settled && `${settled.width}×${settled.height}, ${settled.frames} frames`;

  function runningRow(video) {
    const left =
      video.expected_seconds && video.started_at ? video.started_at + video.expected_seconds - Date.now() / 1000 : 0;
    const eta = left > 1 ? `about ${duration(left)} left` : null;
    const row = h(
      "li",
      { class: "job", dataset: { id: video.id } },
      liveThumb(video),
      words(video, [video.model, size(video), video.device, eta]),
      h("progress", {
        max: 100,
        value: video.progress ?? 0,
        "aria-label": `Progress of ${video.prompt || "the clip"}`,
      }),
      h(
        "div",
        { class: "job-actions" },
        h("span", { class: "state" }, STATES[video.status]),
        h(
          "button",
          {
            type: "button",
            class: "quiet small",
            onclick: () => cancel(video, true),
            disabled: video.status === "cancelling",
          },
          "Stop, keep partial",
        ),
        h(
          "button",
          {
            type: "button",
            class: "quiet small",
            onclick: () => cancel(video),
            disabled: video.status === "cancelling",
          },
          "Cancel",
        ),
      ),
    );
    return row;
  }
  function waitingRow(video, at, all) {
    const label = video.prompt || "clip";
    const row = h(
      "li",
      { class: "job draggable", draggable: true, dataset: { id: video.id } },
      h("span", { class: "grip" }, icon("grip")),
      h("span", { class: "place" }, `${at + 1}`),
      thumbnail(video),
      words(video, [video.model, size(video), video.expected_seconds && `about ${duration(video.expected_seconds)}`]),
      h(
        "div",
        { class: "job-actions" },
        iconButton("raise", `Move up: ${label}`, () => shift(video.id, at - 1, "Move up"), { disabled: at === 0 }),
        iconButton("chevron", `Move down: ${label}`, () => shift(video.id, at + 1, "Move down"), {
          disabled: at === all.length - 1,
        }),
        h(
          "button",
          { type: "button", class: "quiet small", onclick: () => cancel(video), "aria-label": `Cancel ${label}` },
          "Cancel",
        ),
      ),
    );
    row.addEventListener("dragstart", (event) => {
      dragged = video.id;
      event.dataTransfer.effectAllowed = "move";
      event.dataTransfer.setData("text/plain", video.id);
      row.classList.add("dragged");
    });
    row.addEventListener("dragend", () => ((dragged = null), draw()));
    return row;
  }
  /** Move by keyboard: the same button of the moved row has the focus afterwards. */
  async function shift(id, to, button) {
    await move(id, to);
    const row = queued.querySelector(`[data-id="${id}"]`);
    const usable = [...(row?.querySelectorAll("button:not([disabled])") ?? [])];
    (usable.find((each) => each.getAttribute("aria-label")?.startsWith(button)) ?? usable[0])?.focus();
  }
  function endedRow(video) {
    const reason =
      video.error?.message ?? (video.status === "interrupted" ? "The service stopped while it ran." : null);
    const took =
      video.started_at && video.completed_at ? `took ${duration(video.completed_at - video.started_at)}` : null;
    return h(
      "li",
      { class: `job ${video.status}`, dataset: { id: video.id } },
      thumbnail(video),
      words(video, [video.model, size(video), took, ago(video.completed_at ?? video.created_at)]),
      reason && h("p", { class: "reason" }, sentence(reason)),
      h(
        "div",
        { class: "job-actions" },
        h(
          "span",
          { class: `state ${video.status}` },
          hasClip(video) && video.status !== "completed"
            ? `${STATES[video.status]}, partial clip`
            : STATES[video.status],
        ),
        video.status !== "completed" &&
          h("button", { type: "button", class: "quiet small", onclick: () => retry(video) }, "Try again"),
        video.status !== "completed" &&
          iconButton("trash", `Remove ${video.prompt || "the clip"}`, () => remove(video)),
        video.status === "completed" &&
          h(
            "button",
            { type: "button", class: "quiet small", onclick: () => (remember("watching", video.id), go("make")) },
            "Look",
          ),
      ),
    );
  }
  queued.addEventListener("dragover", (event) => {
    if (!dragged) return;
    event.preventDefault();
    const row = queued.querySelector(".dragged");
    const over = [...queued.children].find(
      (each) => each !== row && event.clientY < each.getBoundingClientRect().top + each.offsetHeight / 2,
    );
    if (over !== row?.nextElementSibling) queued.insertBefore(row, over ?? null);
  });
  queued.addEventListener("drop", (event) => {
    if (!dragged) return;
    event.preventDefault();
    const to = [...queued.children].findIndex((each) => each.dataset.id === dragged);
    const id = dragged;
    dragged = null;
    move(id, to);
  });

  function workerRow(worker) {
    const loaded = (worker.loaded ?? worker.models ?? []).map((each) =>
      typeof each === "string" ? each : `${each.model ?? each.name}${each.bytes ? ` (${bytes(each.bytes)})` : ""}`,
    );
    const facts = [
      worker.name,
      worker.state,
      loaded.length && `loaded: ${loaded.join(", ")}`,
      worker.memory_limit && `at most ${bytes(worker.memory_limit)}`,
      worker.message,
      worker.restarts && `restarted ${worker.restarts} times`,
    ];
    return h(
      "li",
      {},
      h("strong", {}, worker.device ?? "worker"),
      h("span", { class: "muted" }, facts.filter(Boolean).join(" · ")),
    );
  }

  function draw() {
    if (dragged) return;
    const { paused } = current.queue;
    const [run, wait, end] = [active(), waiting(), current.videos.filter(isFinal).slice(0, ENDED)];
    const state = JSON.stringify([
      paused,
      current.queue.workers,
      [...run, ...wait, ...end].map((each) => [each.id, each.status, each.progress, each.eta, each.stage]),
    ]);
    if (state === drawn && !queued.querySelector(".dragged")) return;
    drawn = state;
    const focus = document.activeElement?.closest("[data-id]") && [
      document.activeElement.closest("[data-id]").dataset.id,
      document.activeElement.textContent || document.activeElement.getAttribute("aria-label"),
    ];
    endLive(run);
    fill(running, run.map(runningRow));
    fill(queued, wait.map(waitingRow));
    fill(ended, end.map(endedRow));
    fill(workers, (current.queue.workers ?? []).map(workerRow));
    fill(pause, icon(paused ? "play" : "pause"), paused ? "Resume" : "Pause");
    pause.setAttribute("aria-pressed", `${paused}`);
    summary.textContent = `${run.length} running, ${wait.length} waiting${paused ? "; paused: what runs finishes, nothing else starts" : ""}`;
    sections.running.hidden = !run.length;
    sections.waiting.hidden = !wait.length;
    sections.ended.hidden = !end.length;
    empty.hidden = run.length + wait.length + end.length > 0;
    if (focus)
      [...document.querySelectorAll(`[data-id="${focus[0]}"] :is(button, a)`)]
        .find((each) => (each.textContent || each.getAttribute("aria-label")) === focus[1])
        ?.focus();
  }

  fill(
    root,
    h(
      "div",
      { class: "page" },
      h("header", { class: "page-head" }, h("h1", {}, "Queue"), summary, pause),
      sections.running,
      sections.waiting,
      sections.ended,
      empty,
      h("footer", {}, h("h2", { class: "small-head" }, "Workers"), workers),
    ),
  );
  const unsubscribe = subscribe(draw);
  refresh();
  return () => {
    unsubscribe();
    endLive([]);
  };
}

function section(title, list) {
  return h("section", {}, h("h2", {}, title), list);
}
