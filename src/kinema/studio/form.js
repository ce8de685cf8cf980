// The form of a verb, from the definitions of /v1/options: the first fields, then all others in groups with a filter.

import { control } from "./fields.js";
import { fill, h, icon, newId } from "./dom.js";
import { sentence } from "./format.js";
import { fieldsOf, isDefault } from "./order.js";

const SHORT = new Set(["integer", "number", "choice", "model", "size", "time", "text"]);
const INSIDE_SIZE = new Set(["width", "height"]);

/**
 * A form: {element, refresh(), errors({param, message}), field(name)}.
 * ``context``: values() (an object that the form changes), changed(name), model(), models().
 */
export function form(definitions, verb, context) {
  const entries = new Map();
  const first = definitions.verbs.get(verb).first;
  const described = fieldsOf(definitions, verb).filter((field) => !INSIDE_SIZE.has(field.name));
  const trimmed = described.some((field) => field.name === "start");
  const ends = ["start", "end"].filter((name) => described.some((field) => field.name === name));

  function entry(field) {
    const row = fieldRow(field, {
      ...context,
      change: (value) => put(field, value),
      taken: context.taken,
      fail: (text) => row.fail(text),
      trimEnds: (each) =>
        trimmed && (each.name === "video" || (each.name === "image" && !ends.includes("end"))) ? ends : [],
      trimmed: (cut, names) => names.forEach((name) => put(definitions.fields[name], cut[name], true)),
    });
    entries.set(field.name, row);
    row.write(context.values()[field.name]);
    return row.element;
  }
  function put(field, value, show = false) {
    if (isDefault(field, value)) delete context.values()[field.name];
    else context.values()[field.name] = value;
    entries.get(field.name)?.fail("");
    if (show) entries.get(field.name)?.write(value);
    if (field.name === "model") refresh();
    if (field.name === "video" || field.name === "image") entries.get("region")?.refresh();
    if (field.name === "start" || field.name === "end")
      show || (entries.get("video") ?? entries.get("image"))?.retrim?.();
    more.count();
    context.changed(field.name);
  }
  function refresh() {
    for (const each of entries.values()) each.refresh();
  }

  const top = h(
    "div",
    { class: "fields first-fields" },
    first.map((name) => entry(definitions.fields[name])),
  );
  const more = moreFields(definitions, verb, first, entry, entries, context);
  more.count();
  return {
    element: h("div", { class: "stack" }, top, more.element),
    refresh,
    field: (name) => entries.get(name),
    fail({ param, message }) {
      const name = param && [param, ...(INSIDE_SIZE.has(param) ? ["size"] : [])].find((each) => entries.has(each));
      if (!name) return false;
      more.reveal(name);
      entries.get(name).fail(message);
      return true;
    },
    clearErrors: () => entries.forEach((each) => each.fail("")),
  };
}

/** A field with its label, help, error and control. */
function fieldRow(field, context) {
  const [helpId, errorId] = [newId("help"), newId("error")];
  const made = control(field, { ...context, describedBy: helpId });
  const help = h("p", { class: "help", id: helpId }, sentence(field.help));
  const error = h("p", { class: "error-text", id: errorId, hidden: true });
  made.input.id ||= newId("field");
  made.input.setAttribute("aria-describedby", `${helpId} ${errorId}`);
  const label = h("label", { class: "field-label", htmlFor: made.input.id }, field.label);
  const size = made.inline ? "switch-field" : SHORT.has(field.type) ? "short" : "wide";
  const element = h("div", {
    class: `field ${size}`,
    dataset: { field: field.name, search: `${field.label} ${field.name} ${field.help}`.toLowerCase() },
  });
  element.append(
    ...(made.inline
      ? [h("div", { class: "switch-row" }, made.input, label), help, error]
      : [label, made.element, help, error]),
  );
  return {
    element,
    write: made.write,
    retrim: made.retrim,
    take: made.take,
    focus: () => made.input.focus(),
    refresh: made.refresh ?? (() => {}),
    fail(text) {
      error.hidden = !text;
      error.textContent = text;
      element.classList.toggle("invalid", Boolean(text));
      if (text) made.input.setAttribute("aria-invalid", "true");
      else made.input.removeAttribute("aria-invalid");
    },
  };
}

/** All other fields, in the groups of the help pages, built when they are first opened. */
function moreFields(definitions, verb, first, entry, entries, context) {
  const groups = definitions.verbs
    .get(verb)
    .groups.map(({ title, fields }) => ({
      title,
      fields: fields.filter((name) => !first.includes(name) && !INSIDE_SIZE.has(name)),
    }))
    .filter(({ fields }) => fields.length);
  const names = groups.flatMap((group) => group.fields);
  const badge = h("span", { class: "badge", hidden: true });
  const body = h("div", { class: "stack more-body" });
  const details = h(
    "details",
    { class: "more", ontoggle: () => details.open && build() },
    h("summary", {}, icon("chevron"), h("span", {}, "All options"), badge),
    body,
  );

  function build() {
    if (body.childElementCount) return;
    const empty = h("p", { class: "muted", hidden: true }, "No option has these words.");
    const filter = h("input", {
      type: "search",
      placeholder: "Filter options",
      "aria-label": "Filter options",
      oninput: () => narrow(filter.value),
    });
    const sections = groups.map(({ title, fields }) => {
      const rows = h(
        "div",
        { class: "fields" },
        fields.map((name) => entry(definitions.fields[name])),
      );
      return h(
        "details",
        { class: "group", open: groups.length < 3 || title === groups[0].title },
        h("summary", {}, icon("chevron"), sentence(title)),
        rows,
      );
    });
    function narrow(text) {
      const words = text.toLowerCase().split(/\s+/).filter(Boolean);
      let found = 0;
      for (const section of sections) {
        let inside = 0;
        for (const row of section.querySelectorAll(".field[data-search]")) {
          row.hidden = !words.every((word) => row.dataset.search.includes(word));
          inside += row.hidden ? 0 : 1;
        }
        section.hidden = !inside;
        if (words.length) section.open = inside > 0;
        found += inside;
      }
      empty.hidden = found > 0;
    }
    fill(body, filter, sections, empty);
  }
  function count() {
    const changed = names.filter((name) => !isDefault(definitions.fields[name], context.values()[name])).length;
    badge.hidden = !changed;
    badge.textContent = `${changed} set`;
  }
  function reveal(name) {
    if (!names.includes(name)) return;
    details.open = true;
    build();
    entries.get(name)?.element.closest("details").setAttribute("open", "");
  }
  return { element: details, count, reveal };
}
