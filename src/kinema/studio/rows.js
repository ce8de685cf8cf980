// Fields with any number of entries.

import { fill, h, iconButton } from "./dom.js";

/** Rows that the user adds and removes; ``parts(row, changed)`` gives a row's controls. */
export function rowsControl(field, { change }, blank, parts, add) {
  let rows = [];
  const list = h("div", { class: "rows" });
  const more = h("button", { type: "button", class: "quiet small", "aria-label": add, onclick: append }, add);
  const changed = () => change(structuredClone(rows));
  function append() {
    rows.push(blank());
    draw();
    list.lastElementChild.querySelector("input, select, button")?.focus();
    changed();
  }
  function remove(row) {
    rows = rows.filter((each) => each !== row);
    draw();
    more.focus();
    changed();
  }
  function draw() {
    const name = field.label.toLowerCase();
    fill(
      list,
      rows.map((row, at) =>
        h(
          "div",
          { class: "row" },
          parts(row, changed),
          iconButton("close", `Remove ${name} ${at + 1}`, () => remove(row)),
        ),
      ),
    );
  }
  function write(value) {
    rows = Array.isArray(value) ? structuredClone(value) : [];
    draw();
  }
  return { element: h("div", { class: "stack" }, list, more), input: more, redraw: draw, write };
}
