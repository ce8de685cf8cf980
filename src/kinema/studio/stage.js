// The frame that the timeline shows, large: the picture, neighbours as onion skin, masks as a tint, and what is painted.

import { h } from "./dom.js";
import { cover } from "./frames.js";
import { isEmpty, stroke, tinted } from "./paint.js";
import { boxOverlay } from "./box.js";
import { announce } from "./toast.js";

const PAINTED = [32, 201, 180];
const CARRIED = [250, 176, 5];
const SHARP = 200;

/**
 * The stage: {element, draw(), size(width, height), tool(name), brush(share)}.
 * ``context``: picture(frame), onion(frame), mask(frame) → {canvas, painted}, begin(frame) → canvas to paint on (promise),
 * commit(frame, canvas), region(), setRegion(box), frame(), fit(), empty().
 */
export function stage(context) {
  const canvas = h("canvas", {
    class: "stage-canvas",
    tabIndex: 0,
    role: "application",
    "aria-label": "Frame",
    "aria-describedby": "stage-keys",
  });
  const ring = h("div", { class: "brush-ring", hidden: true });
  const box = boxOverlay({ change: context.setRegion });
  const hint = h("p", { class: "stage-hint muted" });
  const live = h("span", { class: "live", hidden: true }, "Preview");
  const fitted = h("div", { class: "stage-fitted" }, canvas, box.element, ring);
  const keys = h(
    "p",
    { id: "stage-keys", class: "visually-hidden" },
    "Left and right go to other frames. With the brush or eraser, arrows move the brush, space paints, [ and ] change its size. With the region tool, Enter makes a box, which arrows move.",
  );
  const element = h("div", { class: "stage-frame" }, fitted, hint, live, keys);
  let tool = "look";
  let brush = 0.12;
  let painting = null;
  let from = null;
  let starting = null;
  let points = [];
  let paintedFrame = 0;
  let cursor = { x: 0.5, y: 0.5 };
  const tints = new WeakMap();

  const pen = () => context.canPaint() && (tool === "brush" || tool === "eraser");
  const radius = () => Math.max(0.5, (brush / 2) * Math.min(canvas.width, canvas.height));

  function draw() {
    const frame = context.frame();
    const brushContext = canvas.getContext("2d");
    brushContext.imageSmoothingEnabled = canvas.width > SHARP;
    brushContext.clearRect(0, 0, canvas.width, canvas.height);
    const picture = context.picture(frame);
    if (picture) cover(brushContext, picture, canvas.width, canvas.height, context.fit());
    const ghosts = context.onion(frame);
    for (const [other, strength] of ghosts) {
      brushContext.globalAlpha = strength;
      cover(brushContext, other, canvas.width, canvas.height, context.fit());
      brushContext.globalAlpha = 1;
    }
    const mask = painting ? { canvas: painting, painted: true, fresh: true } : context.mask(frame);
    if (mask) brushContext.drawImage(tint(mask), 0, 0, canvas.width, canvas.height);
    hint.hidden = Boolean(picture) || ghosts.length > 0;
    hint.textContent = hint.hidden ? "" : context.empty(frame);
    live.hidden = !context.live();
    box.write(context.region(), tool === "region");
    canvas.setAttribute("aria-label", `Frame ${frame + 1}`);
    fitted.dataset.tool = tool;
    fitted.dataset.mask = mask ? (mask.painted ? "painted" : "carried") : "none";
  }
  function tint({ canvas: mask, painted, fresh }) {
    if (!fresh && tints.has(mask)) return tints.get(mask);
    const made = tinted(mask, painted ? PAINTED : CARRIED, 0.6);
    if (!fresh) tints.set(mask, made);
    return made;
  }

  // --------------------------------------------------------------------------------- the brush

  const place = (event) => {
    const frame = canvas.getBoundingClientRect();
    return { x: (event.clientX - frame.left) / frame.width, y: (event.clientY - frame.top) / frame.height };
  };
  const pixel = ({ x, y }) => ({ x: x * canvas.width, y: y * canvas.height });
  function ringAt(spot) {
    cursor = spot;
    ring.hidden = !pen();
    const side = brush * Math.min(canvas.clientWidth, canvas.clientHeight);
    Object.assign(ring.style, {
      width: `${side}px`,
      height: `${side}px`,
      left: `${spot.x * 100}%`,
      top: `${spot.y * 100}%`,
    });
  }
  function begin(spot) {
    const frame = context.frame();
    points = [spot];
    starting = context.begin(frame).then((mask) => {
      painting = mask;
      paintedFrame = frame;
      points.splice(0).forEach(line);
    });
  }
  function line(spot) {
    const to = pixel(spot);
    stroke(painting, from ?? to, to, radius(), tool === "brush");
    from = to;
    draw();
  }
  async function end() {
    if (!starting) return;
    const ready = starting;
    starting = null;
    await ready;
    const mask = painting;
    from = null;
    await context.commit(paintedFrame, isEmpty(mask) ? null : mask);
    painting = null;
    draw();
  }
  canvas.addEventListener("pointerdown", (event) => {
    if (!pen() || event.button !== 0) return;
    event.preventDefault();
    canvas.focus();
    canvas.setPointerCapture(event.pointerId);
    begin(place(event));
  });
  canvas.addEventListener("pointermove", (event) => {
    ringAt(place(event));
    if (!starting) return;
    const spots = event.getCoalescedEvents?.() ?? [];
    for (const each of spots.length ? spots : [event]) {
      if (painting) line(place(each));
      else points.push(place(each));
    }
  });
  for (const kind of ["pointerup", "pointercancel"]) canvas.addEventListener(kind, end);
  canvas.addEventListener("pointerleave", () => (ring.hidden = document.activeElement !== canvas || !pen()));
  canvas.addEventListener("focus", () => canvas.matches(":focus-visible") && ringAt(cursor));
  canvas.addEventListener("blur", () => (ring.hidden = true));
  canvas.addEventListener("keydown", async (event) => {
    const by = event.shiftKey ? 0.1 : 0.02;
    const moves = { ArrowLeft: [-by, 0], ArrowRight: [by, 0], ArrowUp: [0, -by], ArrowDown: [0, by] };
    if (tool === "region" && event.key === "Enter") {
      if (!context.region()) context.setRegion([0.25, 0.25, 0.75, 0.75]);
      box.focus();
      event.preventDefault();
      return;
    }
    if (!pen() || !(moves[event.key] || event.key === " ")) return;
    event.preventDefault();
    event.stopPropagation(); // at once: elsewhere the space bar plays
    if (moves[event.key]) {
      const [x, y] = moves[event.key];
      ringAt({ x: Math.min(1, Math.max(0, cursor.x + x)), y: Math.min(1, Math.max(0, cursor.y + y)) });
    } else {
      begin(cursor);
      await end();
      announce(tool === "brush" ? "Painted" : "Erased");
    }
  });

  return {
    element,
    canvas,
    draw,
    size(width, height) {
      const scale = Math.min(1, 1024 / Math.max(width, height));
      const [w, high] = [Math.max(1, Math.round(width * scale)), Math.max(1, Math.round(height * scale))];
      if (canvas.width === w && canvas.height === high) return;
      canvas.width = w;
      canvas.height = high;
      canvas.classList.toggle("sharp", w <= SHARP);
      fitted.style.setProperty("--ratio", w / high);
      draw();
    },
    tool(name) {
      tool = name;
      ringAt(cursor);
      ring.hidden = true;
      draw();
    },
    brush(share) {
      brush = share;
      if (!ring.hidden) ringAt(cursor);
    },
  };
}
