// Under the stage of the timeline: play and step, inputs or result, onion skin, and the tools that paint and draw.

import { h, icon, iconButton, set } from "./dom.js";
import { invert } from "./paint.js";
import { announce, toast } from "./toast.js";

const TOOLS = [
  ["look", "cursor", "Look (V)"],
  ["brush", "brush", "Brush: paint a mask (B)"],
  ["eraser", "eraser", "Eraser (E)"],
  ["region", "box", "Region: draw a box (R)"],
];

/** The bar: {element, draw(), key(event, key) → whether it was one of its keys, destroy()}. */
export function transport({ frame, count, fps, go, images, canPaint, stage, doc, masks, takes, paint }) {
  let tool = "look";
  let brush = 0.16;
  let timer = 0;

  const toggle = iconButton("play", "Play", play, { class: "icon-button primary-icon" });
  const counter = h("output", { class: "counter" });
  const views = [
    ["inputs", "Inputs"],
    ["result", "Result"],
  ].map(([name, words]) =>
    h("button", { type: "button", class: "chip", dataset: { show: name }, onclick: () => images.show(name) }, words),
  );
  const onion = h(
    "button",
    {
      type: "button",
      class: "chip",
      title: "Show neighbouring frames through this one (O)",
      onclick: () => images.setOnion(!images.onionOn()),
    },
    "Onion skin",
  );
  const tools = h(
    "div",
    { class: "tools-row", role: "toolbar", "aria-label": "Tools" },
    TOOLS.map(([name, drawing, label]) => iconButton(drawing, label, () => choose(name), { dataset: { tool: name } })),
  );
  const size = h("input", {
    type: "range",
    min: 1,
    max: 60,
    value: brush * 100,
    class: "brush-size",
    "aria-label": "Brush size in percent of the frame",
    oninput: () => resize(Number(size.value) / 100),
  });
  const mask = h(
    "div",
    { class: "tools-row", role: "group", "aria-label": "Mask of this frame" },
    size,
    h(
      "button",
      { type: "button", class: "quiet small", onclick: () => edit("The mask was inverted", invert) },
      "Invert",
    ),
    h("button", { type: "button", class: "quiet small", onclick: clear }, "Clear"),
  );
  const region = h("button", { type: "button", class: "quiet small", onclick: dropRegion }, "Remove region");
  const element = h(
    "div",
    { class: "transport" },
    h(
      "div",
      { class: "tools-row" },
      iconButton("back", "Previous frame", () => go((frame() - 1 + count()) % count())),
      toggle,
      iconButton("forward", "Next frame", () => go((frame() + 1) % count())),
      counter,
    ),
    tools,
    mask,
    region,
    h("span", { class: "spacer" }),
    h("div", { class: "tools-row", role: "group", "aria-label": "What is shown" }, onion, views),
  );

  function play() {
    if (timer) {
      clearInterval(timer);
      timer = 0;
    } else timer = setInterval(() => go((frame() + 1) % count()), 1000 / Math.min(30, fps()));
    const label = timer ? "Pause" : "Play";
    set(toggle, { "aria-label": label, title: label }).replaceChildren(icon(label.toLowerCase()));
  }
  function choose(name) {
    if ((name === "brush" || name === "eraser") && !paint()) return;
    if (name === "region" && !takes("region")) {
      toast("A region belongs to inpainting and animating: choose one of them first.");
      return;
    }
    tool = name;
    if (name !== "look") images.show("inputs");
    if (timer && name !== "look") play();
    stage.tool(name);
    stage.brush(brush);
    announce(TOOLS.find(([each]) => each === name)[2]);
    draw();
  }
  function resize(share) {
    brush = Math.min(0.6, Math.max(0.01, share));
    size.value = brush * 100;
    stage.brush(brush);
  }
  async function edit(words, change) {
    await masks.edit(frame(), change);
    announce(words);
  }
  function clear() {
    masks.commit(frame(), null);
    announce("The mask of this frame was removed");
  }
  function dropRegion() {
    doc.change((request) => delete request.region);
  }
  const KEYS = {
    " ": play,
    arrowleft: () => go(frame() - 1),
    arrowright: () => go(frame() + 1),
    home: () => go(0),
    end: () => go(count() - 1),
    v: () => choose("look"),
    b: () => choose("brush"),
    e: () => choose("eraser"),
    r: () => choose("region"),
    o: () => images.setOnion(!images.onionOn()),
    "[": () => resize(brush / 1.2),
    "]": () => resize(brush * 1.2),
  };
  function draw() {
    if (!canPaint() && (tool === "brush" || tool === "eraser")) {
      tool = "look";
      stage.tool(tool);
    }
    if (tool === "region" && !takes("region")) stage.tool((tool = "look"));
    counter.textContent = `${frame() + 1} / ${count()}`;
    for (const button of tools.children) button.setAttribute("aria-pressed", `${button.dataset.tool === tool}`);
    tools.querySelector("[data-tool=region]").hidden = !takes("region");
    for (const name of ["brush", "eraser"]) tools.querySelector(`[data-tool=${name}]`).hidden = !doc.request.video;
    tools.querySelector("[data-tool=look]").hidden = !takes("region") && !doc.request.video;
    mask.hidden = !canPaint() || !["brush", "eraser"].includes(tool);
    region.hidden = !(takes("region") && doc.request.region);
    onion.setAttribute("aria-pressed", `${images.onionOn()}`);
    for (const each of views) {
      each.hidden = !images.hasResult();
      each.setAttribute("aria-pressed", `${each.dataset.show === images.showing()}`);
    }
  }
  return {
    element,
    draw,
    key(event, key) {
      const control = event.target.closest?.("button, [role=slider], [role=radio], a, summary, input");
      if (!KEYS[key] || (control && ![..."vbero[]"].includes(key))) return false;
      KEYS[key]();
      return true;
    },
    destroy: () => clearInterval(timer),
  };
}
