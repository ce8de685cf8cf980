// Small images of jobs and files, loaded when they come into view.

import { assetPath, contentPath, media } from "./api.js";
import { h, icon } from "./dom.js";
import { thumbnailOf } from "./filethumb.js";

const seen = new IntersectionObserver(
  (entries) => {
    for (const { isIntersecting, target } of entries) {
      if (!isIntersecting) continue;
      seen.unobserve(target);
      load(target);
    }
  },
  { rootMargin: "200px" },
);

async function load(image) {
  try {
    image.src = await media(image.dataset.path);
  } catch {
    image.remove();
  }
}

/** An image of a path, loaded when it comes into view. */
export function lazyImage(path, alt = "", properties = {}) {
  const image = h("img", { alt, decoding: "async", dataset: { path }, ...properties });
  image.addEventListener("error", () => image.remove());
  seen.observe(image);
  return image;
}

/** Whether a job has a clip: finished, or cancelled with its partial clip kept. */
export const hasClip = (video) => video.status === "completed" || Boolean(video.result);

/** The thumbnail of a job: its clip, how far it is, or while it waits the file that it begins with. */
export function thumbnail(video) {
  const input = video.request?.image ?? video.request?.video;
  if (video.status === "queued" && input) return thumbnailOf({ id: input, kind: null });
  const box = h("span", { class: "thumb" });
  if (hasClip(video)) box.append(lazyImage(contentPath(video.id, "thumbnail")));
  else if (video.status === "in_progress" || video.status === "cancelling")
    box.append(h("span", { class: "thumb-share" }, `${video.progress ?? 0}%`));
  else box.append(icon(video.status === "failed" ? "close" : "make"));
  return box;
}

/** The path of a file's bytes, and of an image of it. */
export const filePath = (file) => (file.id.startsWith("video_") ? contentPath(file.id) : assetPath(file.id));
