// Below the tracks: the prompt that is selected, and the part of the clip that is used.

import { fill, h, icon, iconButton, newId } from "./dom.js";
import { parseSpan } from "./spans.js";
import { trimmer } from "./trim.js";

/** The panel: {element, draw(), focus()}. */
export function inspector({ doc, selected, count, setSpan, removeSpan, takes, source, choose }) {
  const element = h("div", { class: "timeline-details" });
  const spanPlace = h("section", { class: "panel detail", "aria-label": "Prompt of a span", hidden: true });
  const clipPlace = h("section", { class: "panel detail", "aria-label": "Clip", hidden: true });
  element.append(spanPlace, clipPlace);
  let drawnSpan = null;
  let drawnClip = "";
  let trim = null;

  function drawSpan() {
    const key = takes("prompt_spans") ? selected() : null;
    spanPlace.hidden = key === null;
    const state = key === null ? null : `${key} ${count()}`;
    if (state === drawnSpan && spanPlace.contains(document.activeElement)) return;
    drawnSpan = state;
    if (key === null) return;
    const focused = spanPlace.contains(document.activeElement) ? document.activeElement.dataset.part : null;
    const [first, last] = parseSpan(key, count());
    const [textId, fromId, toId] = ["span", "from", "to"].map(newId);
    const merge = `text-${performance.now()}`;
    const text = h("textarea", {
      id: textId,
      rows: 2,
      value: doc.request.prompt_spans[key],
      placeholder: "a green star spins",
      oninput: () => {
        drawnSpan = `${selected()} ${count()}`;
        setSpan(selected(), parseSpan(selected(), count()), text.value, merge);
      },
    });
    const bound = (id, at, value) => {
      const input = h("input", {
        id,
        type: "number",
        dataset: { part: ["from", "to"][at] },
        min: 0,
        max: count() - 1,
        step: 1,
        value,
        onchange: () => {
          const next = parseSpan(selected(), count());
          next[at] = Math.min(count() - 1, Math.max(0, Math.round(Number(input.value)) || 0));
          setSpan(selected(), [Math.min(...next), Math.max(...next)]);
        },
      });
      return input;
    };
    fill(
      spanPlace,
      h("label", { class: "field-label", htmlFor: textId }, "Prompt of this span"),
      text,
      h(
        "div",
        { class: "span-bounds" },
        h("label", { htmlFor: fromId }, "from frame"),
        bound(fromId, 0, first),
        h("label", { htmlFor: toId }, "to frame"),
        bound(toId, 1, last),
        iconButton("trash", "Remove this prompt", () => removeSpan(selected())),
      ),
    );
    if (focused) spanPlace.querySelector(`[data-part=${focused}]`).focus();
  }
  function drawClip() {
    const clip = source();
    clipPlace.hidden = !clip;
    const facts = clip && { id: clip.id, kind: "video", frames: clip.frames, fps: clip.fps };
    const state = JSON.stringify(facts);
    if (state === drawnClip) return void (clip && trim?.write(doc.request.start, doc.request.end));
    drawnClip = state;
    trim?.destroy();
    trim = null;
    if (!clip) return undefined;
    const trims = takes("start") && clip.frames > 1 && clip.id;
    if (trims) {
      trim = trimmer(facts, ["start", "end"], ({ start, end }) =>
        doc.change((request) => Object.assign(request, { start, end }), { merge: "trim" }),
      );
      trim.write(doc.request.start, doc.request.end);
    }
    fill(
      clipPlace,
      h(
        "div",
        { class: "detail-head" },
        h("span", { class: "field-label" }, "Part of the clip"),
        h("span", { class: "file-name muted", title: clip.name }, clip.name),
        h("button", { type: "button", class: "quiet small", onclick: choose }, icon("image"), "Replace"),
        iconButton("close", "Remove the clip", () =>
          doc.change((request) => Object.assign(request, { video: null, start: null, end: null, masks: null }), {
            what: "all",
          }),
        ),
      ),
      trims ? trim.element : null,
    );
    return undefined;
  }
  return {
    element,
    draw() {
      drawSpan();
      drawClip();
    },
    focus() {
      drawSpan();
      spanPlace.querySelector("textarea")?.focus();
    },
  };
}
