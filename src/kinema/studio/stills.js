// Single frames of clips and images as canvases, drawn by the browser's own decoder.

import { media } from "./api.js";
import { filePath } from "./thumb.js";

const SIDE = 512;
const WAIT = 8000;

function within(promise, milliseconds = WAIT) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error("the browser did not decode the file in time")), milliseconds);
  });
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

const once = (target, kind) =>
  within(
    new Promise((resolve, reject) => {
      target.addEventListener(kind, () => resolve(target), { once: true });
      target.addEventListener("error", () => reject(new Error("the browser cannot decode this file")), { once: true });
    }),
  );

function drawn(source, width, height, most = SIDE) {
  const scale = Math.min(1, most / Math.max(width, height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(width * scale));
  canvas.height = Math.max(1, Math.round(height * scale));
  canvas.getContext("2d").drawImage(source, 0, 0, canvas.width, canvas.height);
  return canvas;
}

/** A muted <video> of a file with its metadata loaded. */
export async function videoOf(file) {
  const video = document.createElement("video");
  video.muted = true;
  video.preload = "auto";
  video.src = file.url ?? (await media(filePath(file)));
  await once(video, "loadedmetadata");
  return video;
}

async function imageOf(file) {
  const image = new Image();
  image.src = file.url ?? (await media(filePath(file)));
  await within(image.decode());
  return image;
}

/** The frame of a video at a time, as a canvas. */
export async function frameAt(video, seconds, most = SIDE) {
  const target = Math.max(0, Math.min(seconds, (video.duration || 0) - 0.001));
  const seeked = once(video, "seeked");
  video.currentTime = target;
  await seeked;
  return drawn(video, video.videoWidth, video.videoHeight, most);
}

/** The first frame of a file, as a canvas. */
export async function stillOf(file) {
  if (file.kind !== "video") {
    try {
      const image = await imageOf(file);
      return drawn(image, image.naturalWidth, image.naturalHeight);
    } catch (error) {
      if (file.kind === "image") throw error;
    }
  }
  const video = await videoOf(file);
  return frameAt(video, 0);
}

/** ``count`` evenly spaced frames of a clip, one after the other: calls draw(canvas, index). */
export async function filmstrip(file, count, draw, signal) {
  const video = await videoOf(file);
  for (let index = 0; index < count && !signal.aborted; index += 1) {
    draw(await frameAt(video, ((index + 0.5) / count) * video.duration, 160), index);
  }
  video.removeAttribute("src");
  video.load();
}
