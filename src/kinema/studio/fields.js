// One control for each type of field. A control is {element, input, write(value)}; it calls change(value) when the user acts.

import { addOnsFor, namedSizes, defaultsOf, isHere, isLora, isModel } from "./catalogue.js";
import { fill, h, icon, iconButton, newId } from "./dom.js";
import { fileControl, framesControl } from "./files.js";
import { regionControl } from "./region.js";
import { rowsControl } from "./rows.js";

const numberOf = (text) => (text.trim() === "" || Number.isNaN(Number(text)) ? null : Number(text));

/** The control of a field. ``context``: change(value), values(), model() and models() (rows of /v1/models). */
export function control(field, context) {
  return (CONTROLS[field.type] ?? textControl)(field, context);
}

function textControl(field, { change }) {
  const input = h("input", {
    type: "text",
    autocomplete: "off",
    spellcheck: false,
    oninput: () => change(input.value),
  });
  return { element: input, input, write: (value) => (input.value = value ?? "") };
}

function longText(field, { change }) {
  const input = h("textarea", {
    rows: field.name === "prompt" ? 3 : 2,
    spellcheck: true,
    oninput: () => (grow(), change(input.value)),
  });
  if (field.name === "prompt") input.placeholder = "a red ball rolls right";
  function grow() {
    input.style.height = "auto";
    if (input.scrollHeight) input.style.height = `${Math.min(input.scrollHeight + 2, 320)}px`;
  }
  return { element: input, input, write: (value) => ((input.value = value ?? ""), grow()) };
}

/** A number; left empty it is the model's own, which the placeholder shows. */
function numberControl(field, context) {
  const whole = field.type === "integer";
  const input = h("input", {
    type: "number",
    inputMode: whole ? "numeric" : "decimal",
    step: whole ? 1 : "any",
    min: field.least,
    max: field.most > 1e15 ? undefined : field.most,
    autocomplete: "off",
    oninput: () => context.change(numberOf(input.value)),
  });
  const own = () => (field.default === null ? defaultsOf(context.model())[field.name] : field.default);
  const refresh = () => (input.placeholder = own() ?? (field.name === "seed" ? "random" : "auto"));
  refresh();
  const element = field.name === "seed" ? h("div", { class: "joined" }, input, dice(input, context)) : input;
  return { element, input, refresh, write: (value) => (input.value = value ?? "") };
}

function dice(input, { change }) {
  return iconButton("dice", "Choose a random seed", () => {
    input.value = crypto.getRandomValues(new Uint32Array(1))[0];
    change(Number(input.value));
  });
}

function booleanControl(field, { change }) {
  const input = h("input", { type: "checkbox", class: "switch", onchange: () => change(input.checked) });
  return { element: input, input, inline: true, write: (value) => (input.checked = value ?? field.default ?? false) };
}

function select(options, change) {
  const input = h("select", { onchange: () => change(input.value || null) });
  const offer = (rows) => {
    const chosen = input.value;
    fill(
      input,
      rows.map(([value, label]) => h("option", { value }, label)),
    );
    input.value = chosen;
  };
  offer(options);
  function write(value) {
    if (value && ![...input.options].some((each) => each.value === `${value}`))
      input.append(h("option", { value }, `${value}`));
    input.value = value ?? "";
  }
  return { element: input, input, offer, write };
}

function choiceControl(field, { change }) {
  const blank = field.default === null ? [["", "default"]] : [];
  const made = select([...blank, ...field.choices.map((each) => [each, each])], change);
  return { ...made, write: (value) => made.write(value ?? field.default) };
}

function modelControl(field, context) {
  const main = field.name === "model";
  const made = select([], context.change);
  const rows = () => context.models().filter((row) => isModel(row) && isHere(row));
  function refresh() {
    const blank = main
      ? []
      : [
          ["", field.name === "super_resolution" ? "default" : "none"],
          ...(field.name === "super_resolution" ? [["none", "none"]] : []),
        ];
    made.offer([...blank, ...rows().map((row) => [row.id, row.kind === "preset" ? `${row.id} (untrained)` : row.id])]);
    write(context.values()[field.name]);
  }
  const write = (value) => made.write(value ?? (main ? field.default : ""));
  refresh();
  return { ...made, refresh, write };
}

/** A size: the model's own, one of its named sizes, or width and height. */
function sizeControl(field, context) {
  const chosen = h("select", { onchange: () => (toggle(), report()) });
  const side = (label) =>
    h("input", {
      type: "number",
      min: 1,
      max: 8192,
      step: 1,
      inputMode: "numeric",
      "aria-label": label,
      oninput: report,
    });
  const width = side("Width in pixels");
  const height = side("Height in pixels");
  const custom = h("div", { class: "pair" }, width, h("span", { "aria-hidden": "true" }, "×"), height);
  const toggle = () => (custom.hidden = chosen.value !== "custom");
  function report() {
    if (chosen.value === "custom") context.change({ width: numberOf(width.value), height: numberOf(height.value) });
    else context.change(chosen.value ? { name: chosen.value.slice(5) } : null);
  }
  function refresh() {
    const own = defaultsOf(context.model());
    const named = namedSizes(context.model()).map(([name, sides]) => [
      `name:${name}`,
      `${name} (${sides[1]}×${sides[0]})`,
    ]);
    const before = chosen.value;
    fill(
      chosen,
      [
        ["", own.width ? `${own.width}×${own.height} (default)` : "default"],
        ...named,
        ["custom", "width × height…"],
      ].map(([value, label]) => h("option", { value }, label)),
    );
    chosen.value = [...chosen.options].some((each) => each.value === before) ? before : "";
    width.placeholder = own.width ?? "";
    height.placeholder = own.height ?? "";
    toggle();
  }
  function write(value) {
    if (value?.name && ![...chosen.options].some((each) => each.value === `name:${value.name}`))
      chosen.append(h("option", { value: `name:${value.name}` }, value.name));
    chosen.value = value?.name ? `name:${value.name}` : value ? "custom" : "";
    width.value = value?.width ?? "";
    height.value = value?.height ?? "";
    toggle();
  }
  refresh();
  return { element: h("div", { class: "stack" }, chosen, custom), input: chosen, refresh, write };
}

function pairControl(field, { change }) {
  const words = ["lower", "upper"];
  const inputs = words.map((word) =>
    h("input", {
      type: "number",
      step: "any",
      "aria-label": `${field.label}, ${word}`,
      placeholder: word,
      oninput: report,
    }),
  );
  function report() {
    const numbers = inputs.map((each) => numberOf(each.value));
    change(numbers.every((each) => each === null) ? null : numbers);
  }
  return {
    element: h("div", { class: "pair" }, inputs),
    input: inputs[0],
    write: (value) => inputs.forEach((each, at) => (each.value = value?.[at] ?? "")),
  };
}

function cell(row, key, label, changed, properties = {}) {
  const read = () => (properties.type === "number" ? numberOf(input.value) : input.value);
  const input = h("input", {
    type: "text",
    autocomplete: "off",
    "aria-label": label,
    placeholder: label.toLowerCase(),
    value: row[key] ?? "",
    oninput: () => ((row[key] = read()), changed()),
    ...properties,
  });
  return input;
}

const textsByFrame = (field, context) =>
  rowsControl(
    field,
    context,
    () => ({ frames: "", text: "" }),
    (row, changed) => [
      cell(row, "frames", "Frames", changed, { class: "narrow", placeholder: "8-15" }),
      cell(row, "text", "Prompt", changed),
    ],
    "Add a prompt",
  );

const pairsByName = (field, context) =>
  rowsControl(
    field,
    context,
    () => ({ key: "", value: "" }),
    (row, changed) => [cell(row, "key", "Name", changed), cell(row, "value", "Value", changed, { class: "narrow" })],
    "Add an option",
  );

/** Options of the model's family: rows of names and values, and the list of what this model has. */
function extraControl(field, context) {
  const names = h("datalist", { id: newId("names") });
  const made = rowsControl(
    field,
    context,
    () => ({ key: "", value: "" }),
    (row, changed) => [
      cell(row, "key", "Name", changed, { list: names.id }),
      cell(row, "value", "Value", changed, { class: "narrow" }),
    ],
    "Add an option",
  );
  const list = h("dl", { class: "facts" });
  const known = h(
    "details",
    {},
    h("summary", { class: "muted" }, icon("chevron"), h("span", {}, "Options of this model")),
    list,
  );
  function refresh() {
    const extra = Object.entries(defaultsOf(context.model()).extra ?? {}).map(([name, help]) => [
      name.replaceAll("_", "-"),
      help,
    ]);
    fill(
      names,
      extra.map(([name]) => h("option", { value: name })),
    );
    fill(
      list,
      extra.map(([name, help]) => [h("dt", {}, name), h("dd", {}, help)]),
    );
    known.hidden = !extra.length;
  }
  refresh();
  return { ...made, element: h("div", { class: "stack" }, made.element, known, names), refresh };
}

function lorasControl(field, context) {
  const names = () =>
    context
      .models()
      .filter((row) => isLora(row) && isHere(row))
      .map((row) => row.id);
  const parts = (row, changed) => {
    const known = names();
    if (row.name && !known.includes(row.name)) known.unshift(row.name);
    const chosen = h(
      "select",
      { "aria-label": "LoRA", onchange: () => ((row.name = chosen.value), changed()) },
      h("option", { value: "" }, "choose…"),
      known.map((name) => h("option", { value: name }, name)),
    );
    chosen.value = row.name;
    return [chosen, cell(row, "weight", "Weight", changed, { type: "number", step: 0.05, class: "narrow" })];
  };
  const made = rowsControl(field, context, () => ({ name: "", weight: 1 }), parts, "Add a LoRA");
  return { ...made, refresh: made.redraw };
}

/** Add-ons of the model, each chosen together with its slot. */
function addOnsControl(field, context) {
  const textOf = ({ slot, name }) => (slot ? `${slot}=${name}` : "");
  function parts(row, changed) {
    const offered = addOnsFor(context.model(), context.models());
    if (row.slot && !offered.some((each) => textOf(each) === textOf(row))) offered.unshift({ ...row });
    const slots = [...new Set(offered.map((each) => each.slot))];
    const group = (slot) =>
      h(
        "optgroup",
        { label: `Slot ${slot}` },
        offered
          .filter((each) => each.slot === slot)
          .map((each) => h("option", { value: textOf(each) }, each.name)),
      );
    const choose = () => {
      Object.assign(row, offered.find((each) => textOf(each) === chosen.value) ?? { slot: "", name: "" });
      changed();
    };
    const chosen = h(
      "select",
      { "aria-label": "Add-on", onchange: choose },
      h("option", { value: "" }, "choose…"),
      slots.map(group),
    );
    chosen.value = textOf(row);
    return [chosen];
  }
  const made = rowsControl(field, context, () => ({ slot: "", name: "" }), parts, "Add an add-on");
  const none = h("p", { class: "muted" }, "There are no add-ons for this model here.");
  function refresh() {
    const offers = addOnsFor(context.model(), context.models()).length > 0;
    made.input.hidden = !offers;
    none.hidden = offers;
    made.redraw();
  }
  refresh();
  return { ...made, element: h("div", { class: "stack" }, made.element, none), refresh };
}

const CONTROLS = {
  long_text: longText,
  integer: numberControl,
  number: numberControl,
  boolean: booleanControl,
  choice: choiceControl,
  model: modelControl,
  size: sizeControl,
  pair: pairControl,
  box: regionControl,
  file: fileControl,
  files_by_frame: framesControl,
  texts_by_frame: textsByFrame,
  numbers: pairsByName,
  mapping: extraControl,
  loras: lorasControl,
  add_ons: addOnsControl,
};
