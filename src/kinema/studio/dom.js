// Elements without markup: text is always text, so nothing that a user or a file says is ever parsed.

const SVG = "http://www.w3.org/2000/svg";

/** An element: h("button", {class: "quiet", onclick: run, disabled: true}, "Run"). Children may be null or lists. */
export function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  set(element, properties);
  element.append(...flat(children));
  return element;
}

/** Set properties: on… are listeners, "dataset" and "style" tables, the rest attributes or, if they exist, properties. */
export function set(element, properties) {
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "class") element.setAttribute("class", value);
    else if (name === "dataset") Object.assign(element.dataset, value);
    else if (name === "style") for (const [key, each] of Object.entries(value)) element.style.setProperty(key, each);
    else if (name in element && !name.startsWith("aria") && name !== "list" && name !== "form") element[name] = value;
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false) element.setAttribute(name, String(value));
  }
  return element;
}

/** Replace what an element holds. */
export function fill(element, ...children) {
  element.replaceChildren(...flat(children));
  return element;
}

function flat(children) {
  return children.flat(Infinity).filter((each) => each !== null && each !== undefined && each !== false);
}

const PATHS = {
  make: "M5 3l14 9-14 9z",
  timeline: "M3 6h18M3 12h18M3 18h18M8 4v4M15 10v4M11 16v4",
  gallery: "M4 4h7v7H4zM13 4h7v7h-7zM4 13h7v7H4zM13 13h7v7h-7z",
  queue: "M4 6h16M4 12h16M4 18h10",
  models: "M12 3l9 5-9 5-9-5zM3 12l9 5 9-5M3 16l9 5 9-5",
  sun: "M12 8a4 4 0 100 8 4 4 0 000-8zM12 2v3M12 19v3M2 12h3M19 12h3M5 5l2 2M17 17l2 2M19 5l-2 2M7 17l-2 2",
  moon: "M20 14.5A8.5 8.5 0 119.5 4 7 7 0 0020 14.5z",
  auto: "M12 3a9 9 0 100 18 9 9 0 000-18zM12 3v18",
  play: "M7 4l13 8-13 8z",
  pause: "M8 4v16M16 4v16",
  back: "M18 5l-9 7 9 7zM6 5v14",
  forward: "M6 5l9 7-9 7zM18 5v14",
  loop: "M4 11V9a4 4 0 014-4h11M16 2l3 3-3 3M20 13v2a4 4 0 01-4 4H5M8 22l-3-3 3-3",
  down: "M12 4v11M7 11l5 5 5-5M4 20h16",
  up: "M12 20V9M7 13l5-5 5 5M4 4h16",
  close: "M6 6l12 12M18 6L6 18",
  retry: "M20 12a8 8 0 11-2.5-5.8M20 3v5h-5",
  dice: "M4 4h16v16H4zM9 9h.01M15 15h.01M15 9h.01M9 15h.01",
  grip: "M9 6h.01M15 6h.01M9 12h.01M15 12h.01M9 18h.01M15 18h.01",
  chevron: "M6 9l6 6 6-6",
  raise: "M6 15l6-6 6 6",
  copy: "M9 9h11v11H9zM5 15H4V4h11v1",
  trash: "M4 7h16M9 7V4h6v3M6 7l1 13h10l1-13M10 11v5M14 11v5",
  extend: "M3 5h9v14H3zM16 12h6M19 9l3 3-3 3",
  reuse: "M4 12a8 8 0 0113.7-5.6L20 9M20 4v5h-5M20 12a8 8 0 01-13.7 5.6L4 15M4 20v-5h5",
  grid: "M4 4h7v7H4zM13 4h7v7h-7zM4 13h7v7H4zM13 13h7v7h-7z",
  plus: "M12 5v14M5 12h14",
  undo: "M8 5L3 10l5 5M3 10h11a6 6 0 010 12h-3",
  redo: "M16 5l5 5-5 5M21 10H10a6 6 0 000 12h3",
  file: "M6 3h8l5 5v13H6zM14 3v5h5",
  folder: "M3 6h6l2 3h10v10H3z",
  cursor: "M6 4l12 8-6 1-3 6z",
  brush: "M20 4L10 14M10 14c-4-1-5 2-5 6 4 0 7-1 6-5z",
  eraser: "M8 20l-5-5L14 4l6 6-10 10zM8 20h12M9 9l6 6",
  box: "M4 8V4h4M16 4h4v4M20 16v4h-4M8 20H4v-4",
  heart: "M12 20S4 15 4 9a4 4 0 018-1 4 4 0 018 1c0 6-8 11-8 11z",
  compare: "M12 3v18M4 6h5v12H4zM15 6h5v12h-5",
  more: "M6 12h.01M12 12h.01M18 12h.01",
  image: "M4 5h16v14H4zM4 16l5-5 4 4 3-3 4 4M15 9h.01",
};

/** A drawing of PATHS, which screen readers skip. */
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  for (const [key, value] of Object.entries({ viewBox: "0 0 24 24", class: "icon", "aria-hidden": "true" })) {
    svg.setAttribute(key, value);
  }
  const path = document.createElementNS(SVG, "path");
  path.setAttribute("d", PATHS[name]);
  svg.append(path);
  return svg;
}

/** A button with a drawing; ``label`` is read aloud and shown as a tooltip. */
export function iconButton(name, label, onclick, properties = {}) {
  return h(
    "button",
    { type: "button", class: "icon-button", "aria-label": label, title: label, onclick, ...properties },
    icon(name),
  );
}

let count = 0;

/** An identifier that no other element has. */
export function newId(prefix) {
  count += 1;
  return `${prefix}-${count}`;
}
