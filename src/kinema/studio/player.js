// A clip with the controls that short clips need: loop, single frames, speed, and pixels kept sharp.

import { media } from "./api.js";
import { h, icon, iconButton, set } from "./dom.js";
import { remember, remembered } from "./store.js";

const SPEEDS = [0.1, 0.25, 0.5, 1, 2];
const SMALL = 160;
const still = matchMedia("(prefers-reduced-motion: reduce)");

/**
 * A player: {element, video, show(frame), destroy()}. ``clip``: path, fps, frames, width, height, label.
 * Keys: space plays, left and right step a frame, home and end.
 */
export function player(clip) {
  const total = Math.max(1, clip.frames ?? 1);
  const fps = clip.fps || 8;
  const video = h("video", {
    class: "screen-media",
    loop: true,
    muted: true,
    playsInline: true,
    preload: "auto",
    "aria-label": clip.label ?? "Clip",
  });
  const scrub = h("input", {
    type: "range",
    class: "scrub",
    min: 0,
    max: total - 1,
    step: 1,
    value: 0,
    "aria-label": "Frame",
  });
  const counter = h("output", { class: "counter" }, `1 / ${total}`);
  const toggle = iconButton("play", "Play", () => (video.paused ? video.play() : video.pause()), {
    class: "icon-button primary-icon",
  });
  const loop = iconButton("loop", "Loop", () => repeat(!video.loop), { "aria-pressed": "true" });
  const speed = h(
    "select",
    { class: "compact", "aria-label": "Speed", onchange: () => pace(Number(speed.value)) },
    SPEEDS.map((each) => h("option", { value: each }, `${each}×`)),
  );
  const sharp = h(
    "button",
    { type: "button", class: "chip", onclick: () => sharpen(sharp.getAttribute("aria-pressed") !== "true") },
    "Sharp pixels",
  );
  const controls = h(
    "div",
    { class: "player-controls", role: "group", "aria-label": "Player" },
    toggle,
    iconButton("back", "Previous frame", () => step(-1)),
    iconButton("forward", "Next frame", () => step(1)),
    scrub,
    counter,
    loop,
    speed,
    (clip.width ?? 0) <= SMALL * 2 && sharp,
  );
  const element = h("div", { class: "player" }, h("div", { class: "screen-frame" }, video), controls);
  let gone = false;
  let shown = 0;

  const frameNow = () => Math.min(total - 1, Math.max(0, Math.floor(video.currentTime * fps + 0.01)));
  function display(frame) {
    shown = frame;
    scrub.value = frame;
    scrub.setAttribute("aria-valuetext", `frame ${frame + 1} of ${total}`);
    counter.textContent = `${frame + 1} / ${total}`;
  }
  function show(frame) {
    video.pause();
    display(((frame % total) + total) % total);
    video.currentTime = (shown + 0.5) / fps;
  }
  const step = (by) => show(shown + by);
  function repeat(on) {
    video.loop = on;
    loop.setAttribute("aria-pressed", `${on}`);
  }
  function pace(rate) {
    video.playbackRate = rate;
    speed.value = rate;
    remember("speed", rate);
  }
  function sharpen(on) {
    video.classList.toggle("sharp", on);
    sharp.setAttribute("aria-pressed", `${on}`);
    remember("sharp", on);
  }
  function playing() {
    const label = video.paused ? "Play" : "Pause";
    set(toggle, { "aria-label": label, title: label }).replaceChildren(icon(label.toLowerCase()));
  }
  function tick() {
    if (gone) return;
    if (!video.paused) display(frameNow());
    if ("requestVideoFrameCallback" in video) video.requestVideoFrameCallback(tick);
  }
  scrub.addEventListener("input", () => show(Number(scrub.value)));
  video.addEventListener("play", playing);
  video.addEventListener("pause", playing);
  video.addEventListener("ended", () => display(total - 1));
  video.addEventListener("timeupdate", () => video.paused || display(frameNow()));
  video.addEventListener("loadedmetadata", () => {
    video.classList.toggle("enlarged", video.videoWidth < 480);
    pace(remembered("speed", 1));
  });
  video.addEventListener("click", () => (video.paused ? video.play() : video.pause()));
  element.addEventListener("keydown", (event) => {
    if (event.target.closest("select, input, button") && event.target !== scrub && event.key === " ") return;
    if (event.target === scrub && event.key !== " ") return;
    const keys = {
      " ": () => toggle.click(),
      ArrowLeft: () => step(-1),
      ArrowRight: () => step(1),
      Home: () => show(0),
      End: () => show(total - 1),
    };
    if (event.target.tagName === "SELECT" || !keys[event.key]) return;
    event.preventDefault();
    keys[event.key]();
  });
  sharpen(remembered("sharp", (clip.width ?? 0) <= SMALL));
  tick();
  media(clip.path).then(
    (url) => {
      if (gone) return;
      video.src = url;
      if (!still.matches) video.play().catch(() => {});
    },
    () => element.prepend(h("p", { class: "error-text" }, "The clip could not be loaded.")),
  );

  return {
    element,
    video,
    show,
    destroy() {
      gone = true;
      video.pause();
      video.removeAttribute("src");
      video.load();
    },
  };
}
