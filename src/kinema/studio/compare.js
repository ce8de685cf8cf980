// Two clips in the same place, in step, with a wipe between them.

import { contentPath, media } from "./api.js";
import { countOf } from "./clips.js";
import { h, icon, iconButton, set } from "./dom.js";

/** Open the comparison of two jobs in ``host``. */
export function compare(host, left, right) {
  const facts = [left, right].map((each) => ({ ...each.settled, ...each.result }));
  const total = Math.max(...facts.map((each) => each.frames ?? 1));
  const rate = facts[0].fps || 8;
  const videos = [left, right].map((each, at) =>
    h("video", {
      class: "compare-video",
      muted: true,
      playsInline: true,
      preload: "auto",
      "aria-label": `${at ? "Right" : "Left"}: ${each.prompt || each.id}`,
    }),
  );
  const wipe = h("input", {
    type: "range",
    class: "visually-hidden",
    min: 0,
    max: 100,
    value: 50,
    "aria-label": "Wipe",
    oninput: () => place(Number(wipe.value)),
  });
  const line = h("div", { class: "wipe-line" }, h("span", { class: "wipe-knob" }, icon("compare")));
  const frame = h("div", { class: "compare-frame" }, videos, line);
  const scrub = h("input", {
    type: "range",
    class: "scrub",
    min: 0,
    max: total - 1,
    value: 0,
    "aria-label": "Frame",
    oninput: () => show(Number(scrub.value)),
  });
  const counter = h("output", { class: "counter" }, `1 / ${total}`);
  const toggle = iconButton("pause", "Pause", () => run(!timer), { class: "icon-button primary-icon" });
  const name = (job) =>
    h(
      "span",
      { class: "compare-name" },
      h("strong", {}, job.prompt || job.id),
      h(
        "span",
        { class: "muted" },
        [job.model, `seed ${job.seed ?? job.settled?.seed}`, countOf(job) > 1 && `clip ${(job.clip ?? 0) + 1}`]
          .filter(Boolean)
          .join(", "),
      ),
    );
  const element = h(
    "dialog",
    { class: "details compare", "aria-label": "Compare two clips" },
    h(
      "div",
      { class: "details-head" },
      h("h2", {}, "Compare"),
      iconButton("close", "Close", () => element.close()),
    ),
    h("div", { class: "compare-names" }, name(left), name(right)),
    frame,
    wipe,
    h(
      "div",
      { class: "player-controls", role: "group", "aria-label": "Player" },
      toggle,
      iconButton("back", "Previous frame", () => (run(false), show(shown - 1))),
      iconButton("forward", "Next frame", () => (run(false), show(shown + 1))),
      scrub,
      counter,
    ),
  );
  let timer = 0;
  let shown = 0;
  let moving = [false, false];
  let wanted = [0, 0];

  /** Both clips at one frame: each is sought by itself, and a seek that is under way is not interrupted. */
  function show(at) {
    shown = ((at % total) + total) % total;
    scrub.value = shown;
    counter.textContent = `${shown + 1} / ${total}`;
    element.dataset.frame = shown;
    wanted = facts.map((each) => (Math.min(shown, (each.frames ?? 1) - 1) + 0.5) / (each.fps || 8));
    videos.forEach((_, index) => seek(index));
  }
  function seek(index) {
    const video = videos[index];
    if (moving[index] || !video.src || Math.abs(video.currentTime - wanted[index]) < 0.001) return;
    moving[index] = true;
    video.currentTime = wanted[index];
  }
  videos.forEach((video, index) => {
    video.addEventListener("seeked", () => {
      moving[index] = false;
      seek(index);
    });
    video.addEventListener("loadedmetadata", () => {
      if (index === 0) frame.style.setProperty("--ratio", video.videoWidth / video.videoHeight);
      video.classList.toggle("sharp", video.videoWidth <= 200);
      seek(index);
    });
  });
  function run(on) {
    clearInterval(timer);
    timer = on ? setInterval(() => moving.includes(true) || show(shown + 1), 1000 / rate) : 0;
    const label = on ? "Pause" : "Play";
    set(toggle, { "aria-label": label, title: label }).replaceChildren(icon(label.toLowerCase()));
  }
  function place(share) {
    wipe.value = share;
    frame.style.setProperty("--wipe", `${share}%`);
    wipe.setAttribute("aria-valuetext", `${Math.round(share)}% of the left clip`);
  }
  frame.addEventListener("pointerdown", (event) => {
    frame.setPointerCapture(event.pointerId);
    drag(event);
    wipe.focus({ preventScroll: true });
    event.preventDefault();
  });
  frame.addEventListener("pointermove", (event) => frame.hasPointerCapture(event.pointerId) && drag(event));
  function drag(event) {
    const whole = frame.getBoundingClientRect();
    place(Math.min(100, Math.max(0, ((event.clientX - whole.left) / whole.width) * 100)));
  }
  element.addEventListener("keydown", (event) => {
    const keys = {
      " ": () => run(!timer),
      ",": () => (run(false), show(shown - 1)),
      ".": () => (run(false), show(shown + 1)),
    };
    if (!keys[event.key] || (event.key === " " && event.target.closest("button"))) return;
    event.preventDefault();
    keys[event.key]();
  });
  element.addEventListener("close", () => {
    clearInterval(timer);
    videos.forEach((video) => (video.removeAttribute("src"), video.load()));
    element.remove();
  });
  host.append(element);
  place(50);
  element.showModal();
  wipe.focus();
  Promise.all([left, right].map((each) => media(contentPath(each.id, "video", each.clip)))).then((urls) => {
    urls.forEach((url, index) => (videos[index].src = url));
    show(0);
    run(!matchMedia("(prefers-reduced-motion: reduce)").matches);
  });
}
