// A region as a box over the frame: drawn, moved and sized with the pointer or the arrow keys.

import { h } from "./dom.js";

const CORNERS = { "top left": [0, 1], "top right": [2, 1], "bottom left": [0, 3], "bottom right": [2, 3] };
const LEAST = 0.02;
const clamp = (value) => Math.min(1, Math.max(0, value));
const rounded = (value) => Math.round(value * 1000) / 1000;
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

/** The overlay: {element, focus(), write(box or null, active)}. ``change(box, merge)`` gets left, top, right, bottom. */
export function boxOverlay({ change }) {
  let box = null;
  let held = null;
  const body = h("button", { type: "button", class: "box-body", "aria-label": "Region" });
  const knobs = Object.entries(CORNERS).map(([name, sides]) =>
    h("button", { type: "button", class: `box-knob ${name.replace(" ", "-")}`, dataset: { sides: sides.join() } }),
  );
  const frame = h("div", { class: "box-frame", hidden: true }, body, knobs);
  const element = h("div", { class: "box-layer" }, frame);

  const at = (event) => {
    const whole = element.getBoundingClientRect();
    return [clamp((event.clientX - whole.left) / whole.width), clamp((event.clientY - whole.top) / whole.height)];
  };
  function put(next) {
    box = next.map(rounded);
    place();
    change(box, held?.id ?? null);
  }
  function place() {
    frame.hidden = !box;
    if (!box) return;
    const [left, top, right, bottom] = box.map((each) => each * 100);
    Object.assign(frame.style, {
      left: `${left}%`,
      top: `${top}%`,
      width: `${right - left}%`,
      height: `${bottom - top}%`,
    });
    body.setAttribute(
      "aria-label",
      `Region: ${box.map((each) => `${Math.round(each * 100)}%`).join(", ")}; arrows move it`,
    );
    for (const [index, name] of Object.keys(CORNERS).entries())
      knobs[index].setAttribute("aria-label", `Region, ${name} corner; arrows move it`);
  }
  function moved(start, dx, dy) {
    const x = Math.min(Math.max(dx, -start[0]), 1 - start[2]);
    const y = Math.min(Math.max(dy, -start[1]), 1 - start[3]);
    return [start[0] + x, start[1] + y, start[2] + x, start[3] + y];
  }
  function sized(start, [h_, v], x, y) {
    const next = [...start];
    next[h_] = h_ === 0 ? Math.min(clamp(x), start[2] - LEAST) : Math.max(clamp(x), start[0] + LEAST);
    next[v] = v === 1 ? Math.min(clamp(y), start[3] - LEAST) : Math.max(clamp(y), start[1] + LEAST);
    return next;
  }
  const sidesOf = (knob) => knob.dataset.sides.split(",").map(Number);

  element.addEventListener("pointerdown", (event) => {
    const [x, y] = at(event);
    held = { id: `box-${performance.now()}`, x, y, start: box, target: event.target };
    element.setPointerCapture(event.pointerId);
  });
  element.addEventListener("pointermove", (event) => {
    if (!held) return;
    const [x, y] = at(event);
    if (held.target === body) put(moved(held.start, x - held.x, y - held.y));
    else if (knobs.includes(held.target)) put(sized(held.start, sidesOf(held.target), x, y));
    else {
      const next = [Math.min(held.x, x), Math.min(held.y, y), Math.max(held.x, x), Math.max(held.y, y)];
      if (next[2] - next[0] >= LEAST && next[3] - next[1] >= LEAST) put(next);
    }
  });
  for (const kind of ["pointerup", "pointercancel"]) element.addEventListener(kind, () => (held = null));
  element.addEventListener("keydown", (event) => {
    if (!box || !ARROWS[event.key]) return;
    event.preventDefault();
    event.stopPropagation();
    const [x, y] = ARROWS[event.key].map((each) => each * (event.shiftKey ? 0.1 : 0.01));
    if (event.target === body) put(moved(box, x, y));
    else {
      const sides = sidesOf(event.target);
      put(sized(box, sides, box[sides[0]] + x, box[sides[1]] + y));
    }
  });
  return {
    element,
    focus: () => body.focus(),
    write(value, active) {
      box = value ?? null;
      element.classList.toggle("active", active);
      place();
    },
  };
}
