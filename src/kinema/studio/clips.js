// The clips of a job: one in the player, and those of a batch to choose from.

import { contentPath, open, upload } from "./api.js";
import { fill, h } from "./dom.js";
import { player } from "./player.js";
import { lazyImage } from "./thumb.js";

/** How many clips a job has. */
export const countOf = (video) => video.result?.clips ?? video.settled?.clips ?? 1;

/** The panel: {element, clip() → number of the one that is shown, destroy()}. ``facts``: fps, frames, width, height. */
export function clipView(video, { fps, frames, width, height }) {
  const count = countOf(video);
  const place = h("div");
  const buttons = Array.from({ length: count > 1 ? count : 0 }, (_, clip) =>
    h(
      "button",
      { type: "button", class: "batch-clip", "aria-label": `Clip ${clip + 1} of ${count}`, onclick: () => show(clip) },
      h("span", { class: "thumb" }, lazyImage(contentPath(video.id, "thumbnail", clip))),
      `${clip + 1}`,
    ),
  );
  const element = h(
    "div",
    { class: "stack" },
    place,
    buttons.length > 0 && h("div", { class: "batch", role: "group", "aria-label": "Clips of this batch" }, buttons),
  );
  let shown = 0;
  let made = null;

  function show(clip) {
    shown = clip;
    made?.destroy();
    const name = video.prompt || "Clip";
    const label = count > 1 ? `${name}, clip ${clip + 1} of ${count}` : name;
    made = player({ path: contentPath(video.id, "video", clip), fps, frames, width, height, label });
    fill(place, made.element);
    buttons.forEach((each, at) => each.setAttribute("aria-pressed", `${at === clip}`));
  }
  show(0);
  return { element, clip: () => shown, destroy: () => made.destroy() };
}

/** A clip of a job as the value of a field. All but the first of a batch are uploaded: a job's name means its first. */
export async function clipFile(video, clip) {
  const { frames, fps, width, height } = { ...video.settled, ...video.result };
  const facts = { kind: "video", frames, fps, width, height };
  if (!clip) return { id: video.id, name: video.prompt || video.id, ...facts };
  const name = `${video.prompt || video.id}, clip ${clip + 1}`;
  const blob = await (await open(contentPath(video.id, "video", clip))).blob();
  const { id } = await upload(new File([blob], "clip.mp4", { type: "video/mp4" }), () => {});
  return { id, name, ...facts };
}
