// Server-sent events by fetch: EventSource cannot send a token.

import { ApiError, open } from "./api.js";

const FINAL = new Set(["completed", "failed", "cancelled", "interrupted"]);
const WAITS = [500, 1000, 2000, 5000];

/** Whether a job will not change any more. */
export const isFinal = (video) => FINAL.has(video.status);

/**
 * Follow a job until it is final: ``onEvent(kind, data)`` for each event. A lost connection is opened again.
 * Ends without an error if ``signal`` is aborted; raises ApiError if the job is unknown.
 */
export async function follow(id, onEvent, signal) {
  let failures = 0;
  while (!signal.aborted) {
    try {
      const response = await open(`/v1/videos/${id}/events`, { signal, headers: { Accept: "text/event-stream" } });
      for await (const [kind, data] of parse(response.body, signal)) {
        failures = 0;
        onEvent(kind, data);
        if (kind === "status" && isFinal(data)) return;
      }
    } catch (error) {
      if (signal.aborted) return;
      if (error instanceof ApiError && error.status >= 400 && error.status < 500) throw error;
    }
    await pause(WAITS[Math.min(failures, WAITS.length - 1)], signal);
    failures += 1;
  }
}

/** The events of a stream as [kind, data]. */
export async function* parse(stream, signal) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  signal?.addEventListener("abort", () => reader.cancel().catch(() => {}), { once: true });
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    rest += value;
    const blocks = rest.split(/\r?\n\r?\n/);
    rest = blocks.pop();
    for (const block of blocks) {
      const event = one(block);
      if (event) yield event;
    }
  }
}

function one(block) {
  let kind = "message";
  const data = [];
  for (const line of block.split(/\r?\n/)) {
    if (line.startsWith("event:")) kind = line.slice(6).trim();
    else if (line.startsWith("data:")) data.push(line.slice(5).replace(/^ /, ""));
  }
  return data.length ? [kind, JSON.parse(data.join("\n"))] : null;
}

function pause(milliseconds, signal) {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, milliseconds);
    signal.addEventListener("abort", () => (clearTimeout(timer), resolve()), { once: true });
  });
}
