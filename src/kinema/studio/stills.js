// Single frames of clips and images as canvases, drawn by the browser's own decoder.

import { media, open } from "./api.js";
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
async function videoOf(file) {
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

/**
 * A clip to take frames from: {width, height, duration, frame(seconds, most) → canvas, close()}. An animation that a
 * <video> does not play, such as a gif, is read by the decoder of images.
 */
export async function clipOf(file) {
  try {
    const video = await videoOf(file);
    return {
      width: video.videoWidth,
      height: video.videoHeight,
      duration: video.duration,
      frame: (seconds, most) => frameAt(video, seconds, most),
      close() {
        video.removeAttribute("src");
        video.load();
      },
    };
  } catch (error) {
    if (!globalThis.ImageDecoder) throw error; // this browser has none, or the page is not from a trusted address
    return animationOf(file);
  }
}

async function animationOf(file) {
  const blob = file.blob ?? (await (await open(filePath(file))).blob());
  const decoder = new ImageDecoder({ data: await blob.arrayBuffer(), type: blob.type });
  await within(Promise.all([decoder.tracks.ready, decoder.completed]));
  const ends = [];
  let [width, height] = [0, 0];
  for (let frameIndex = 0; frameIndex < decoder.tracks.selectedTrack.frameCount; frameIndex += 1) {
    const { image } = await decoder.decode({ frameIndex });
    [width, height] = [image.displayWidth, image.displayHeight];
    ends.push((ends.at(-1) ?? 0) + (image.duration ?? 0) / 1e6);
    image.close();
  }
  return {
    width,
    height,
    duration: ends.at(-1),
    async frame(seconds, most) {
      const at = ends.findIndex((each) => each > seconds);
      const { image } = await decoder.decode({ frameIndex: at < 0 ? ends.length - 1 : at });
      const canvas = drawn(image, width, height, most);
      image.close();
      return canvas;
    },
    close: () => decoder.close(),
  };
}

/** The frame of a video at a time, as a canvas. */
async function frameAt(video, seconds, most = SIDE) {
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
  const clip = await clipOf(file);
  try {
    return await clip.frame(0);
  } finally {
    clip.close();
  }
}

/** ``count`` evenly spaced frames of a clip, one after the other: calls draw(canvas, index). */
export async function filmstrip(file, count, draw, signal) {
  const clip = await clipOf(file);
  for (let index = 0; index < count && !signal.aborted; index += 1) {
    draw(await clip.frame(((index + 0.5) / count) * clip.duration, 160), index);
  }
  clip.close();
}
