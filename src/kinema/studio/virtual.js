// A grid of any number of cards of which only those near the window exist.

import { h } from "./dom.js";

const GAP = 16;
const LEAST = 220;
const WORDS = 76;
const MARGIN = 2;

/** The grid: {element, show(rows, top), update(id), redraw(), focus(id), destroy()}. ``make(row)`` gives the card of a row. */
export function virtualGrid(label, make) {
  const list = h("ul", { class: "cards", "aria-label": label });
  const element = h("div", { class: "cards-space" }, list);
  const made = new Map();
  let rows = [];
  let columns = 1;
  let height = 240;
  let waiting = 0;
  let drawn = "";

  function measure() {
    const width = element.clientWidth || 800;
    columns = Math.max(1, Math.floor((width + GAP) / (Math.min(LEAST, (width - GAP) / 2) + GAP)));
    height = Math.round(((width - GAP * (columns - 1)) / columns) * 0.75) + WORDS + GAP;
  }
  function draw() {
    waiting = 0;
    const top = -element.getBoundingClientRect().top;
    const last = Math.ceil(rows.length / columns);
    const from = Math.max(0, Math.min(last, Math.floor(top / height) - MARGIN));
    const to = Math.min(last, Math.ceil((top + innerHeight) / height) + MARGIN);
    const shown = rows.slice(from * columns, Math.max(from, to) * columns);
    element.style.height = `${Math.max(0, last * height - GAP)}px`;
    list.style.transform = `translateY(${from * height}px)`;
    list.style.setProperty("--columns", columns);
    list.style.setProperty("--row", `${height - GAP}px`);
    const state = `${from} ${columns} ${shown.map((each) => each.id).join()}`;
    if (state === drawn) return;
    drawn = state;
    const focused = document.activeElement?.closest?.("[data-card]");
    const button =
      focused && list.contains(focused)
        ? { id: focused.dataset.card, name: document.activeElement.dataset.part }
        : null;
    const keep = new Set(shown.map((each) => each.id));
    for (const id of made.keys()) if (!keep.has(id) && id !== button?.id) made.delete(id);
    const items = shown.map((each, at) => {
      if (!made.has(each.id)) made.set(each.id, make(each));
      const item = made.get(each.id);
      item.setAttribute("aria-setsize", rows.length);
      item.setAttribute("aria-posinset", from * columns + at + 1);
      return item;
    });
    if (items.some((item, at) => list.children[at] !== item) || list.childElementCount !== items.length) {
      place(items);
      if (button)
        list
          .querySelector(`[data-card="${CSS.escape(button.id)}"] [data-part="${button.name}"]`)
          ?.focus({ preventScroll: true });
    }
  }
  /** Put these cards into the list; those that are there already stay as they are. */
  function place(items) {
    const wanted = new Set(items);
    for (const item of [...list.children]) if (!wanted.has(item)) item.remove();
    items.forEach((item, at) => list.children[at] === item || list.insertBefore(item, list.children[at] ?? null));
  }
  const later = () => (waiting ||= requestAnimationFrame(draw));
  const watcher = new ResizeObserver(() => {
    measure();
    drawn = "";
    later();
  });
  watcher.observe(element);
  addEventListener("scroll", later, { passive: true });
  list.addEventListener("keydown", (event) => {
    const now = event.target.closest("[data-card]");
    const by = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[event.key];
    if (!now || !by) return;
    const next = rows[rows.findIndex((each) => each.id === now.dataset.card) + by];
    if (!next) return;
    event.preventDefault();
    focus(next.id);
  });
  function focus(id) {
    const at = rows.findIndex((each) => each.id === id);
    if (at < 0) return;
    const top = element.getBoundingClientRect().top + Math.floor(at / columns) * height;
    if (top < 70) scrollBy(0, top - 80);
    else if (top + height > innerHeight) scrollBy(0, top + height - innerHeight + 20);
    draw();
    list.querySelector(`[data-card="${CSS.escape(id)}"] [data-part=open]`)?.focus({ preventScroll: true });
  }
  return {
    element,
    show(next, top = false) {
      rows = next;
      measure();
      drawn = "";
      if (top && scrollY > element.offsetTop) scrollTo(0, 0);
      draw();
    },
    update(id) {
      made.delete(id);
      drawn = "";
    },
    redraw() {
      made.clear();
      drawn = "";
      draw();
    },
    focus,
    destroy() {
      watcher.disconnect();
      removeEventListener("scroll", later);
      cancelAnimationFrame(waiting);
    },
  };
}
