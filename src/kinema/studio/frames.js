// Frames of a clip by their place in time, decoded one by one and kept while there is room.

import { clipOf, stillOf } from "./stills.js";

const SIDE = 640;
const ROOM = 64 * 2 ** 20;

/**
 * The frames of a file {id} or {url}: {get(seconds) → canvas or null, want(seconds), destroy()}.
 * ``arrived()`` is called after each frame that was decoded.
 */
export function framesOf(file, arrived) {
  const found = new Map();
  let clip = null;
  let still = null;
  let queue = [];
  let busy = false;
  let gone = false;
  let most = 64;

  const key = (seconds) => Math.round(seconds * 1000);
  async function work() {
    if (busy || gone) return;
    busy = true;
    try {
      if (!clip && !still) {
        if (file.kind === "image") still = await stillOf(file);
        else clip = await clipOf(file);
        if (clip)
          most = Math.max(24, Math.floor(ROOM / (4 * Math.min(SIDE, clip.width) * Math.min(SIDE, clip.height))));
      }
      while (queue.length && !gone) {
        const seconds = queue.shift();
        if (found.has(key(seconds))) continue;
        found.set(key(seconds), still ?? (await clip.frame(seconds, SIDE)));
        while (found.size > most) found.delete(found.keys().next().value);
        if (!gone) arrived();
      }
    } catch {
      queue = [];
      if (!gone) arrived(true);
    }
    busy = false;
  }
  return {
    get(seconds) {
      const canvas = found.get(key(seconds));
      if (canvas) {
        found.delete(key(seconds));
        found.set(key(seconds), canvas);
      }
      return canvas ?? null;
    },
    /** Decode these times next, before what was asked for earlier. */
    want(...times) {
      const missing = times.filter((each) => !found.has(key(each)));
      if (!missing.length) return;
      queue = [...missing, ...queue.filter((each) => !missing.includes(each))].slice(0, most);
      work();
    },
    destroy() {
      gone = true;
      queue = [];
      found.clear();
      clip?.close();
    },
  };
}

/** Draw an image so that it covers a canvas, as the package crops inputs. */
export function cover(context, image, width, height, fit = "crop") {
  const [w, h] = [image.videoWidth || image.width, image.videoHeight || image.height];
  const scale = fit === "pad" ? Math.min(width / w, height / h) : Math.max(width / w, height / h);
  context.drawImage(image, (width - w * scale) / 2, (height - h * scale) / 2, w * scale, h * scale);
}
