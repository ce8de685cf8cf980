// A clip as a card: its thumbnail, which plays while it is pointed at or has the focus, and the first things to do.

import { contentPath, media } from "./api.js";
import { h, iconButton } from "./dom.js";
import { countOf } from "./clips.js";
import { ago, counted, sentence } from "./format.js";
import { STATES } from "./screen.js";
import { hasClip, thumbnail } from "./thumb.js";

const still = matchMedia("(prefers-reduced-motion: reduce)");

/** The card. ``actions``: open, like and pick, each with the video. */
export function card(video, actions, { liked, picked }) {
  const { width } = { ...video.settled, ...video.result };
  const words = video.prompt || sentence(video.verb ?? video.settled?.task ?? "clip");
  const picture = thumbnail(video);
  picture.classList.add("card-picture");
  if ((width ?? 999) <= 160) picture.classList.add("sharp-inside");
  const open = h(
    "button",
    { type: "button", class: "card-open", dataset: { part: "open" }, onclick: () => actions.open(video) },
    picture,
    h("span", { class: "card-words", title: words }, words),
    h("span", { class: "muted card-facts" }, [video.model, ago(video.completed_at ?? video.created_at)].join(" · ")),
  );
  const element = h(
    "li",
    { class: `card ${picked ? "picked" : ""}`, dataset: { card: video.id } },
    open,
    countOf(video) > 1 && hasClip(video) && h("span", { class: "card-count" }, counted(countOf(video), "clip")),
    video.status === "completed" ? null : h("span", { class: `card-state ${video.status}` }, STATES[video.status]),
    h(
      "span",
      { class: "card-tools" },
      hasClip(video) &&
        iconButton("compare", `Compare ${words}`, () => actions.pick(video), {
          "aria-pressed": `${Boolean(picked)}`,
          dataset: { part: "compare" },
        }),
      iconButton("heart", `Favourite: ${words}`, () => actions.like(video), {
        "aria-pressed": `${liked}`,
        dataset: { part: "like" },
      }),
    ),
  );
  if (hasClip(video) && !still.matches) playing(open, picture, video);
  return element;
}

function playing(open, picture, video) {
  let clip = null;
  let timer = 0;
  async function start() {
    if (clip) return;
    clip = h("video", {
      class: "card-video",
      muted: true,
      loop: true,
      playsInline: true,
      "aria-hidden": "true",
      tabIndex: -1,
    });
    const mine = clip;
    mine.addEventListener("playing", () => mine === clip && picture.append(mine), { once: true });
    mine.src = await media(contentPath(video.id)).catch(() => "");
    if (mine === clip && mine.src) mine.play().catch(() => {});
  }
  function end() {
    clearTimeout(timer);
    if (!clip || open.matches(":hover, :focus-visible")) return;
    clip.remove();
    clip.removeAttribute("src");
    clip.load();
    clip = null;
  }
  const soon = () => {
    clearTimeout(timer);
    timer = setTimeout(start, 120);
  };
  open.addEventListener("pointerenter", soon);
  open.addEventListener("focus", soon);
  open.addEventListener("pointerleave", end);
  open.addEventListener("blur", end);
}
