// The settings at the side of the timeline: the verb, and the form of all fields that the tracks do not edit.

import { fill, h } from "./dom.js";
import { OWNED } from "./document.js";
import { form } from "./form.js";
import { sentence } from "./format.js";
import { orderOf, valuesOf } from "./order.js";

const OF_TRACKS_IN_EXTRA = ["control", "ip_image"];

/** The panel: {element, draw()}. ``setVerb(name)`` is called for another verb. */
export function sidePanel({ doc, defined, rows, model, setVerb }) {
  const chosen = h(
    "select",
    { id: "timeline-verb", onchange: () => setVerb(chosen.value) },
    defined.order.map((name) => h("option", { value: name }, sentence(name))),
  );
  const place = h("div", { class: "side-form" });
  const element = h(
    "div",
    { class: "stack" },
    h(
      "div",
      { class: "side-verb" },
      h("label", { class: "field-label", htmlFor: "timeline-verb" }, "What to do"),
      chosen,
    ),
    place,
  );
  const own = without(defined);
  let values = {};

  function changed(name) {
    const verb = doc.request.task;
    const order = orderOf(own, verb, values);
    doc.change(
      (request, whole) => {
        const kept = Object.fromEntries(Object.entries(request).filter(([key]) => OWNED.has(key)));
        const extra = Object.fromEntries(
          Object.entries(request.extra ?? {}).filter(([key]) => OF_TRACKS_IN_EXTRA.includes(key)),
        );
        const { loras, ...next } = order.request;
        whole.model = order.model;
        whole.loras = loras ?? {};
        whole.add = order.add ?? {};
        whole.request = { ...next, ...kept };
        const all = { ...next.extra, ...extra };
        if (Object.keys(all).length) whole.request.extra = all;
      },
      { merge: `field-${name}` },
    );
  }
  function draw() {
    const verb = doc.request.task;
    chosen.value = verb;
    const { loras, add, request, model: named } = doc.state;
    const rest = Object.fromEntries(Object.entries(request).filter(([key]) => !OWNED.has(key)));
    const full = { ...rest, ...(Object.keys(loras).length ? { loras } : {}) };
    values = valuesOf(own, { model: named ?? defined.fields.model.default, add, request: full }).values;
    const fields = form(own, verb, { values: () => values, changed, model, models: () => rows, taken: null });
    fill(place, fields.element);
  }
  return { element, draw };
}

/** The definitions without the fields that the tracks edit. */
function without({ fields, verbs, order }) {
  const left = (names) => names.filter((name) => !OWNED.has(name));
  const narrowed = [...verbs].map(([name, verb]) => [
    name,
    {
      ...verb,
      first: left(verb.first),
      groups: verb.groups
        .map((group) => ({ ...group, fields: left(group.fields) }))
        .filter((group) => group.fields.length),
    },
  ]);
  return { fields, order, verbs: new Map(narrowed) };
}
