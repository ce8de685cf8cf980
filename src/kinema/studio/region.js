// A box on the frame: dragged on the first frame of the input, or typed as percentages.

import { h } from "./dom.js";
import { stillOf } from "./stills.js";

const SIDES = ["left", "top", "right", "bottom"];
const clamp = (value) => Math.min(1, Math.max(0, value));
const rounded = (value) => Math.round(value * 1000) / 1000;

/** The control of a box left, top, right, bottom, as fractions of the frame. */
export function regionControl(field, { change, values }) {
  let box = null;
  const shade = h("div", { class: "region-box" });
  const canvas = h("canvas", { class: "region-still", width: 320, height: 180 });
  const area = h(
    "div",
    { class: "region-area", "aria-hidden": "true" },
    canvas,
    shade,
    h("span", { class: "region-hint" }, "Drag a box"),
  );
  const inputs = SIDES.map((side) =>
    h("input", {
      type: "number",
      min: 0,
      max: 100,
      step: 0.1,
      "aria-label": `${field.label}, ${side}, percent`,
      placeholder: side,
      oninput: typed,
    }),
  );
  const clear = h(
    "button",
    { type: "button", class: "quiet small", onclick: () => (write(null), change(null)) },
    "Clear the box",
  );
  let from = null;
  let shown = "";

  function typed() {
    const numbers = inputs.map((each) => (each.value === "" ? null : Number(each.value) / 100));
    box = numbers.every((each) => each === null) ? null : numbers;
    place();
    change(box);
  }
  function place() {
    const whole = box && box.every((each) => each !== null);
    shade.hidden = !whole;
    clear.hidden = !box;
    area.classList.toggle("chosen", Boolean(whole));
    if (!whole) return;
    const [left, top, right, bottom] = box.map((each) => each * 100);
    Object.assign(shade.style, {
      left: `${left}%`,
      top: `${top}%`,
      width: `${Math.max(0, right - left)}%`,
      height: `${Math.max(0, bottom - top)}%`,
    });
  }
  function write(value) {
    box = value ?? null;
    inputs.forEach(
      (each, at) => (each.value = box?.[at] === null || box?.[at] === undefined ? "" : rounded(box[at] * 100)),
    );
    place();
    refresh();
  }
  const at = (event) => {
    const frame = area.getBoundingClientRect();
    return [clamp((event.clientX - frame.left) / frame.width), clamp((event.clientY - frame.top) / frame.height)];
  };
  area.addEventListener("pointerdown", (event) => {
    from = at(event);
    area.setPointerCapture(event.pointerId);
    event.preventDefault();
  });
  area.addEventListener("pointermove", (event) => {
    if (!from) return;
    const [x, y] = at(event);
    const next = [Math.min(from[0], x), Math.min(from[1], y), Math.max(from[0], x), Math.max(from[1], y)].map(rounded);
    if (next[2] - next[0] < 0.02 || next[3] - next[1] < 0.02) return;
    write(next);
    change(next);
  });
  for (const kind of ["pointerup", "pointercancel"]) area.addEventListener(kind, () => (from = null));

  /** Show the first frame of the verb's input. */
  async function refresh() {
    const file = values().video ?? values().image;
    if ((file?.id ?? "") === shown) return;
    shown = file?.id ?? "";
    const still = file ? await stillOf(file).catch(() => null) : null;
    if (shown !== (file?.id ?? "")) return;
    canvas.width = still?.width ?? 320;
    canvas.height = still?.height ?? 180;
    canvas.classList.toggle("sharp", canvas.width < 160);
    if (still) canvas.getContext("2d").drawImage(still, 0, 0);
  }
  place();
  return {
    element: h("div", { class: "stack" }, area, h("div", { class: "quad" }, inputs), clear),
    input: inputs[0],
    refresh,
    write,
  };
}
