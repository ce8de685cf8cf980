// The tracks of the timeline: ruler and playhead, the clip, keyframes, prompts and masks, a column for each frame.

import { fill, h, icon } from "./dom.js";
import { isMedia } from "./files.js";
import { draggedSpan, parseSpan } from "./spans.js";

const LEAST = 12;
const clampTo = (value, most) => Math.min(most, Math.max(0, value));

/**
 * The tracks: {element, draw()}. ``context`` gives frame(), count(), fps(), show(track), keyframes(), masks(), spans(),
 * thumb(frame), imageOf(name), and takes go(frame), moveKeyframe(from, to), removeKeyframe(frame), dropFile(file, frame),
 * chooseImage(frame), removeMask(frame), moveMask(from, to), setSpan(old, next), addSpan(frame), removeSpan(key), select(key).
 */
export function tracks(context) {
  const lanes = h("div", { class: "lanes" });
  const head = h("div", { class: "playhead", "aria-hidden": "true" });
  const ruler = h("div", { class: "ruler" });
  const knob = h("div", {
    class: "playhead-knob",
    role: "slider",
    tabIndex: 0,
    "aria-label": "Frame shown",
    "aria-valuemin": 1,
  });
  const scroll = h(
    "div",
    { class: "tracks-scroll" },
    h(
      "div",
      { class: "tracks-inner" },
      h(
        "div",
        { class: "ruler-row" },
        h("span", { class: "lane-label" }),
        h("div", { class: "lane-body" }, ruler, knob),
      ),
      lanes,
      head,
    ),
  );
  const element = h("section", { class: "tracks panel", "aria-label": "Tracks" }, scroll);
  let drag = null;
  let drawn = "";

  const step = () => 1 / context.count();
  const left = (frame) => `${frame * step() * 100}%`;
  const frameAt = (event, body) => {
    const whole = body.getBoundingClientRect();
    return clampTo(Math.floor(((event.clientX - whole.left) / whole.width) * context.count()), context.count() - 1);
  };

  // ----------------------------------------------------------------------------------- lanes

  function lane(name, label, help, add, items) {
    const body = h("div", { class: `lane-body lane-${name}`, dataset: { lane: name } }, items);
    return h(
      "div",
      { class: "lane" },
      h("div", { class: "lane-label" }, h("span", {}, label), add),
      body,
      help && !items.flat().length && h("span", { class: "lane-hint muted" }, help),
    );
  }
  const plus = (label, onclick) =>
    h(
      "button",
      { type: "button", class: "icon-button lane-add", "aria-label": label, title: label, onclick },
      icon("plus"),
    );

  function clipLane() {
    const count = context.count();
    const shown = Math.min(count, 48);
    const cells = Array.from({ length: shown }, (_, at) => {
      const canvas = h("canvas", {
        class: "strip-cell",
        width: 64,
        height: 40,
        dataset: { frame: Math.floor((at * count) / shown) },
      });
      Object.assign(canvas.style, { left: `${(at / shown) * 100}%`, width: `${100 / shown}%` });
      return canvas;
    });
    return lane("clip", context.clipLabel(), "", null, cells);
  }
  function keyframeLane() {
    const items = context.keyframes().map(([frame, name]) => {
      const picture = h("span", { class: "key-image" });
      context.imageOf(name, picture);
      return marker("key", frame, `Keyframe at frame ${frame + 1}`, picture, {
        move: (to) => context.moveKeyframe(frame, to),
        remove: () => context.removeKeyframe(frame),
      });
    });
    return lane(
      "keyframes",
      "Keyframes",
      "Drop or paste images here: each becomes a frame of the clip",
      plus("Add an image at this frame", () => context.chooseImage(context.frame())),
      items,
    );
  }
  function maskLane() {
    const painted = context.masks();
    const items = painted.map((frame) =>
      marker("mask", frame, `Mask painted on frame ${frame + 1}`, null, {
        move: (to) => context.moveMask(frame, to),
        remove: () => context.removeMask(frame),
      }),
    );
    const bar = painted.length
      ? h("div", { class: "mask-bar", title: "Carried by optical flow to the other frames" })
      : null;
    return lane("masks", "Masks", "Choose the brush and paint over a frame", null, bar ? [bar, ...items] : items);
  }
  function promptLane() {
    const items = context.spans().map(([key, text]) => {
      const [first, last] = parseSpan(key, context.count());
      const block = h(
        "div",
        {
          class: "span",
          role: "button",
          tabIndex: 0,
          "aria-pressed": `${context.selected() === key}`,
          "aria-label": `Prompt on frames ${first + 1} to ${last + 1}: ${text || "empty"}; arrows move it, shift and arrows change its end`,
          dataset: { span: key },
          onfocus: () => context.select(key),
          ondblclick: () => context.edit(key),
        },
        h("span", { class: "span-end span-start", dataset: { end: "first" } }),
        h("span", { class: "span-text" }, text || "empty"),
        h("span", { class: "span-end span-stop", dataset: { end: "last" } }),
      );
      Object.assign(block.style, { left: left(first), width: `${(last - first + 1) * step() * 100}%` });
      return block;
    });
    return lane(
      "prompts",
      "Prompts",
      context.prompt() ? "The prompt applies to all frames" : "Add prompts for parts of the clip",
      plus("Add a prompt at this frame", () => context.addSpan(context.frame())),
      items,
    );
  }
  /** A thing at one frame: dragged, or moved with arrows; Delete removes it, Enter shows its frame. */
  function marker(kind, frame, label, inside, { move, remove }) {
    const button = h(
      "button",
      {
        type: "button",
        class: `marker ${kind}`,
        "aria-label": `${label}; arrows move it, Delete removes it`,
        dataset: { frame, kind },
        onclick: () => context.go(frame),
      },
      inside,
    );
    button.style.left = `calc(${left(frame)} + ${step() * 50}%)`;
    button.addEventListener("keydown", (event) => {
      const to = { ArrowLeft: frame - 1, ArrowRight: frame + 1, Home: 0, End: context.count() - 1 }[event.key];
      if (to !== undefined) {
        move(clampTo(to, context.count() - 1));
        again(kind, clampTo(to, context.count() - 1));
      } else if (event.key === "Delete" || event.key === "Backspace") remove();
      else return;
      event.preventDefault();
      event.stopPropagation();
    });
    button.moved = move;
    return button;
  }
  const again = (kind, frame) => lanes.querySelector(`[data-kind="${kind}"][data-frame="${frame}"]`)?.focus();

  // --------------------------------------------------------------------------------- pointers

  lanes.addEventListener("pointerdown", (event) => {
    const body = event.target.closest(".lane-body");
    if (!body || event.button !== 0) return;
    const mark = event.target.closest(".marker");
    const span = event.target.closest(".span");
    const frame = frameAt(event, body);
    if (mark) drag = { body, mark, frame: Number(mark.dataset.frame), from: frame };
    else if (span) {
      const [first, last] = parseSpan(span.dataset.span, context.count());
      drag = { body, span, key: span.dataset.span, end: event.target.dataset.end, first, last, from: frame };
      span.focus({ preventScroll: true });
    } else {
      context.go(frame);
      drag = { body, scrub: true };
    }
    lanes.setPointerCapture(event.pointerId);
  });
  lanes.addEventListener("pointermove", (event) => {
    if (!drag) return;
    const frame = frameAt(event, drag.body);
    if (drag.scrub) context.go(frame);
    else if (drag.mark) {
      drag.to = clampTo(drag.frame + frame - drag.from, context.count() - 1);
      drag.mark.style.left = `calc(${left(drag.to)} + ${step() * 50}%)`;
    } else {
      drag.next = draggedSpan(drag, frame - drag.from, context.count());
      Object.assign(drag.span.style, {
        left: left(drag.next[0]),
        width: `${(drag.next[1] - drag.next[0] + 1) * step() * 100}%`,
      });
    }
  });
  lanes.addEventListener("pointerup", () => {
    const done = drag;
    drag = null;
    if (done?.mark) {
      if (done.to !== undefined && done.to !== done.frame) done.mark.moved(done.to);
      else context.go(done.frame);
    } else if (done?.span && done.next) context.setSpan(done.key, done.next);
  });
  lanes.addEventListener("pointercancel", () => ((drag = null), draw(true)));
  lanes.addEventListener("keydown", (event) => {
    const span = event.target.closest(".span");
    if (!span) return;
    const key = span.dataset.span;
    const [first, last] = parseSpan(key, context.count());
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (by)
      context.setSpan(key, draggedSpan({ first, last, end: event.shiftKey ? "last" : undefined }, by, context.count()));
    else if (event.key === "Enter" || event.key === " ") context.edit(key);
    else if (event.key === "Delete" || event.key === "Backspace") context.removeSpan(key);
    else return;
    event.preventDefault();
    event.stopPropagation();
  });
  lanes.addEventListener("dblclick", (event) => {
    const body = event.target.closest("[data-lane=prompts]");
    if (body && event.target === body) context.addSpan(frameAt(event, body));
  });
  const over = (event) => event.dataTransfer?.types.includes("Files") && event.target.closest(".lane-body");
  lanes.addEventListener("dragover", (event) => {
    const body = over(event);
    if (!body) return;
    event.preventDefault();
    context.go(frameAt(event, body));
    body.classList.add("over");
  });
  lanes.addEventListener("dragleave", (event) => event.target.closest?.(".lane-body")?.classList.remove("over"));
  lanes.addEventListener("drop", (event) => {
    const body = over(event);
    if (!body) return;
    event.preventDefault();
    event.stopPropagation();
    body.classList.remove("over");
    dispatchEvent(new Event("kinema:dropped"));
    const first = frameAt(event, body);
    [...event.dataTransfer.files]
      .filter(isMedia)
      .forEach((file, at) => context.dropFile(file, Math.min(first + at, context.count() - 1)));
  });

  // ----------------------------------------------------------------------------------- ruler

  const rulerBody = knob.parentElement;
  rulerBody.addEventListener("pointerdown", (event) => {
    rulerBody.setPointerCapture(event.pointerId);
    context.go(frameAt(event, rulerBody));
    knob.focus({ preventScroll: true });
    event.preventDefault();
  });
  rulerBody.addEventListener(
    "pointermove",
    (event) => rulerBody.hasPointerCapture(event.pointerId) && context.go(frameAt(event, rulerBody)),
  );
  knob.addEventListener("keydown", (event) => {
    const last = context.count() - 1;
    const to = {
      ArrowLeft: context.frame() - 1,
      ArrowDown: context.frame() - 1,
      ArrowRight: context.frame() + 1,
      ArrowUp: context.frame() + 1,
      PageDown: context.frame() - 10,
      PageUp: context.frame() + 10,
      Home: 0,
      End: last,
    }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    event.stopPropagation();
    context.go(clampTo(to, last));
  });
  function ticks() {
    const count = context.count();
    const every = [1, 2, 5, 10, 20, 50, 100].find((each) => each * Math.max(LEAST, 900 / count) >= 40) ?? 100;
    const marks = [];
    for (let frame = 0; frame < count; frame += every) {
      const tick = h("span", { class: "tick" }, `${frame}`);
      tick.style.left = left(frame);
      marks.push(tick);
    }
    return marks;
  }

  function draw(force = false) {
    const count = context.count();
    scroll.style.setProperty("--count", count);
    scroll.style.setProperty("--least", `${LEAST}px`);
    const state = JSON.stringify([
      count,
      context.lanes(),
      context.keyframes(),
      context.masks(),
      context.spans(),
      context.clipLabel(),
      context.prompt(),
    ]);
    if ((state !== drawn || force) && !drag) {
      drawn = state;
      const focused = lanes.contains(document.activeElement) ? { ...document.activeElement.dataset } : null;
      fill(ruler, ticks());
      const build = { clip: clipLane, keyframes: keyframeLane, prompts: promptLane, masks: maskLane };
      fill(
        lanes,
        context.lanes().map((name) => build[name]()),
      );
      if (focused?.span !== undefined)
        lanes.querySelector(`[data-span="${CSS.escape(context.selected() ?? "")}"]`)?.focus();
      else if (focused?.kind) again(focused.kind, focused.frame);
    }
    for (const block of lanes.querySelectorAll(".span"))
      block.setAttribute("aria-pressed", `${block.dataset.span === context.selected()}`);
    const frame = context.frame();
    knob.style.left = head.style.left = left(frame);
    knob.style.width = `${step() * 100}%`;
    scroll.style.setProperty("--at", (frame + 0.5) * step());
    knob.setAttribute("aria-valuenow", frame + 1);
    knob.setAttribute("aria-valuemax", count);
    knob.setAttribute(
      "aria-valuetext",
      `frame ${frame + 1} of ${count}, ${(frame / context.fps()).toFixed(2)} seconds`,
    );
    for (const cell of lanes.querySelectorAll(".strip-cell")) paintCell(cell);
  }
  function paintCell(cell) {
    const image = context.thumb(Number(cell.dataset.frame));
    if (!image || cell.shown === image) return;
    cell.shown = image;
    const scale = Math.min(1, 96 / Math.max(image.width, image.height));
    cell.width = Math.max(1, Math.round(image.width * scale));
    cell.height = Math.max(1, Math.round(image.height * scale));
    cell.getContext("2d").drawImage(image, 0, 0, cell.width, cell.height);
  }
  return { element, draw, focusSpan: (key) => lanes.querySelector(`[data-span="${CSS.escape(key)}"]`)?.focus() };
}
