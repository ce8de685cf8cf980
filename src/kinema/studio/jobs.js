// The service's jobs and queue as the page knows them: asked for again while something runs, and shared by all views.

import { call } from "./api.js";
import { isFinal } from "./events.js";

const BUSY = 1500;
const IDLE = 4000;
const RECENT = 40;

const listeners = new Set();
let timer = 0;
let running = null;
let again = false;

/** ``videos``: the newest jobs, newest first; ``queue``: paused, queued, running, workers. */
export const current = { videos: [], queue: { paused: false, queued: [], running: [], workers: [] }, error: null };

/** Call ``listener`` now and after each change; returns a function that ends this. */
export function subscribe(listener) {
  listeners.add(listener);
  listener(current);
  return () => listeners.delete(listener);
}

function tell() {
  for (const listener of [...listeners]) listener(current);
}

/** Ask the service now. Calls while one runs share the next answer. */
export function refresh() {
  if (running) {
    again = true;
    return running;
  }
  running = ask().finally(() => {
    running = null;
    if (again) {
      again = false;
      refresh();
    }
  });
  return running;
}

async function ask() {
  clearTimeout(timer);
  try {
    // One after the other: a job that is removed meanwhile is in the list and not in the queue, and not asked for again.
    const list = await call("GET", `/v1/videos?limit=${RECENT}&order=desc`);
    const queue = await call("GET", "/v1/queue");
    const known = new Set(list.data.map((each) => each.id));
    const missing = [...queue.running, ...queue.queued].filter((id) => !known.has(id)).slice(0, 100);
    const older = await Promise.all(missing.map((id) => call("GET", `/v1/videos/${id}`).catch(() => null)));
    current.videos = [...list.data, ...older.filter(Boolean)];
    current.queue = queue;
    current.error = null;
  } catch (error) {
    current.error = error;
  }
  tell();
  schedule();
}

function schedule() {
  clearTimeout(timer);
  if (document.hidden || current.error?.status === 401) return;
  timer = setTimeout(refresh, current.videos.some((each) => !isFinal(each)) ? BUSY : IDLE);
}

/** Take over a job that an event or an answer brought, without waiting for the next question. */
export function update(video) {
  const at = current.videos.findIndex((each) => each.id === video.id);
  if (at < 0) current.videos = [video, ...current.videos];
  else current.videos = current.videos.with(at, { ...current.videos[at], ...video });
  tell();
  schedule();
}

/** Leave out a job that was deleted. */
export function forget(id) {
  current.videos = current.videos.filter((each) => each.id !== id);
  tell();
}

/** Waiting jobs in the order in which they will run. */
export function waiting() {
  const byId = new Map(current.videos.map((each) => [each.id, each]));
  return current.queue.queued.map((id) => byId.get(id)).filter((each) => each && each.status === "queued");
}

/** Jobs that run now. */
export function active() {
  return current.videos.filter((each) => each.status === "in_progress" || each.status === "cancelling");
}

addEventListener("visibilitychange", () => !document.hidden && refresh());
