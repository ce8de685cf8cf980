// The part of a clip that is used: two handles on a filmstrip, which set start and end in frames.

import { h } from "./dom.js";
import { filmstrip } from "./stills.js";

const THUMBS = 10;

/**
 * A trimmer: {element, write(start, end), destroy()}. ``file`` needs frames; ``change({start, end})`` gets "12f" or null.
 * ``ends``: which handles there are.
 */
export function trimmer(file, ends, change) {
  const total = Math.max(1, file.frames ?? 1);
  const stop = new AbortController();
  const strip = h("canvas", { class: "trim-strip", width: THUMBS * 64, height: 48, "aria-hidden": "true" });
  const cut = { start: 0, end: total };
  const before = h("div", { class: "trim-cut" });
  const after = h("div", { class: "trim-cut trim-after" });
  const words = h("output", { class: "trim-words" });
  const bar = h("div", { class: "trim" }, strip, before, after);
  const handles = ends.map((end) => handle(end));
  bar.append(...handles);
  const element = h("div", { class: "stack trim-box" }, bar, words);

  const seconds = (frame) => (file.fps ? ` (${(frame / file.fps).toFixed(2)} s)` : "");
  const limit = (end, frame) =>
    end === "start" ? Math.min(Math.max(0, frame), cut.end - 1) : Math.max(Math.min(total, frame), cut.start + 1);

  function handle(end) {
    const knob = h("div", {
      class: `trim-handle trim-${end}`,
      role: "slider",
      tabIndex: 0,
      "aria-label": end === "start" ? "Start of the part used" : "End of the part used",
      "aria-valuemin": 0,
      "aria-valuemax": total,
    });
    knob.addEventListener("keydown", (event) => {
      const steps = {
        ArrowLeft: -1,
        ArrowDown: -1,
        ArrowRight: 1,
        ArrowUp: 1,
        PageDown: -10,
        PageUp: 10,
        Home: -total,
        End: total,
      };
      if (!(event.key in steps)) return;
      event.preventDefault();
      put(end, cut[end] + steps[event.key]);
    });
    knob.addEventListener("pointerdown", (event) => {
      knob.setPointerCapture(event.pointerId);
      event.preventDefault();
      knob.focus();
    });
    knob.addEventListener("pointermove", (event) => {
      if (!knob.hasPointerCapture(event.pointerId)) return;
      const frame = bar.getBoundingClientRect();
      put(end, Math.round(((event.clientX - frame.left) / frame.width) * total));
    });
    return knob;
  }
  function put(end, frame) {
    cut[end] = limit(end, frame);
    display();
    change({ start: cut.start ? `${cut.start}f` : null, end: cut.end < total ? `${cut.end}f` : null });
  }
  function display() {
    for (const knob of handles) {
      const end = knob.classList.contains("trim-start") ? "start" : "end";
      knob.style.left = `${(cut[end] / total) * 100}%`;
      knob.setAttribute("aria-valuenow", cut[end]);
      knob.setAttribute("aria-valuetext", `frame ${cut[end]}${seconds(cut[end])}`);
    }
    before.style.width = `${(cut.start / total) * 100}%`;
    after.style.width = `${(1 - cut.end / total) * 100}%`;
    const whole = cut.start === 0 && cut.end === total;
    words.textContent = whole
      ? `All ${total} frames${seconds(total)}`
      : `Frames ${cut.start} to ${cut.end - 1}: ${cut.end - cut.start} of ${total}${seconds(cut.end - cut.start)}`;
  }
  const frameOf = (value, otherwise) => {
    if (value === null || value === undefined || value === "") return otherwise;
    const found = /^(\d+)f$/.exec(`${value}`);
    if (found) return Number(found[1]);
    return file.fps && Number.isFinite(Number(value)) ? Math.round(Number(value) * file.fps) : otherwise;
  };

  const context = strip.getContext("2d");
  filmstrip(
    file,
    THUMBS,
    (frame, index) => {
      const width = strip.width / THUMBS;
      const scale = Math.max(width / frame.width, strip.height / frame.height);
      const [w, h_] = [width / scale, strip.height / scale];
      context.drawImage(
        frame,
        (frame.width - w) / 2,
        (frame.height - h_) / 2,
        w,
        h_,
        index * width,
        0,
        width,
        strip.height,
      );
    },
    stop.signal,
  ).catch(() => strip.classList.add("empty"));
  display();

  return {
    element,
    write(start, end) {
      cut.start = Math.min(frameOf(start, 0), total - 1);
      cut.end = Math.max(Math.min(frameOf(end, total), total), cut.start + 1);
      display();
    },
    destroy: () => stop.abort(),
  };
}
