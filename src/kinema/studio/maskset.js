// The masks of the document: those painted, and those that the service carries to the other frames.

import { masksFor } from "./api.js";
import { carriedMasks, maskCanvas, pngOf } from "./paint.js";

const PAUSE = 400;
const CLIP = ["task", "video", "start", "end", "fit", "frames", "fps", "width", "height", "size", "window"];
/** The fields that masks depend on. No other is sent: a prompt that is half typed must not refuse them. */
const FIELDS = [...CLIP, "masks", "outside"];

/** Masks by frame: {at(frame) → {canvas, painted} or null, begin(frame), commit(frame, canvas or null), refresh(), edit(frame, change)}. */
export function masksOf({ doc, defined, size, redraw, ready }) {
  const canvases = new Map();
  let carried = null;
  let state = "";
  let newest = 0;
  const keyAt = (frame) => doc.request.masks?.[frame]?.slice(6) ?? null;

  function painted(frame) {
    const key = keyAt(frame);
    if (!key) return null;
    if (!canvases.has(key)) {
      canvases.set(key, null);
      doc.blobOf(key).then(
        async (blob) => {
          canvases.set(key, await maskCanvas(blob, ...bounded()));
          redraw();
        },
        () => {},
      );
    }
    return canvases.get(key);
  }
  function bounded() {
    const [width, height] = size();
    const scale = Math.min(1, 1024 / Math.max(width, height));
    return [Math.max(1, Math.round(width * scale)), Math.max(1, Math.round(height * scale))];
  }
  function at(frame) {
    const own = painted(frame);
    if (own) return { canvas: own, painted: true };
    const other = carried?.(frame);
    return other ? { canvas: other, painted: false } : null;
  }
  const memo = new Map();
  const carriedAt = (found) => (frame) => {
    if (!memo.has(frame)) memo.set(frame, found(frame));
    return memo.get(frame);
  };

  async function refresh() {
    const request = Object.fromEntries(FIELDS.map((name) => [name, doc.request[name]]));
    const { model, add } = doc.state;
    const now = JSON.stringify([request, model, add, size()]);
    if (now === state) return undefined;
    state = now;
    newest += 1;
    const mine = newest;
    if (!request.masks || !ready()) {
      carried = null;
      return redraw();
    }
    await new Promise((resolve) => setTimeout(resolve, PAUSE));
    if (mine !== newest) return undefined;
    try {
      const document = await doc.forService(defined, request);
      if (mine !== newest) return undefined;
      const found = await carriedMasks(await masksFor({ document }));
      if (mine !== newest) return undefined;
      memo.clear();
      carried = carriedAt(found);
    } catch {
      if (mine === newest) carried = null; // the plan says why
    }
    return redraw();
  }
  /** A canvas to paint on: the frame's mask, else the one carried to it, else an empty one. */
  async function begin(frame) {
    const canvas = await maskCanvas(null, ...bounded());
    const key = keyAt(frame);
    const from = key
      ? (canvases.get(key) ?? (await maskCanvas(await doc.blobOf(key), ...bounded())))
      : carried?.(frame);
    if (from) {
      const context = canvas.getContext("2d");
      context.imageSmoothingEnabled = false;
      context.drawImage(from, 0, 0, canvas.width, canvas.height);
    }
    return canvas;
  }
  async function commit(frame, canvas) {
    if (!canvas) return doc.change((request) => delete request.masks?.[frame]);
    const key = doc.add(await pngOf(canvas), `mask-${frame}.png`, { kind: "image" });
    canvases.set(key, canvas);
    return doc.change((request) => {
      request.masks = { ...request.masks, [frame]: `media:${key}` };
      delete request.region;
      delete request.mask;
    });
  }
  return {
    at,
    begin,
    commit,
    refresh,
    paintedAt: (frame) => Boolean(keyAt(frame)),
    async edit(frame, change) {
      const canvas = await begin(frame);
      change(canvas);
      await commit(frame, canvas);
    },
  };
}
