// The view Models: what is on this machine, what can be fetched, LoRAs and add-ons, and the disk they use.

import { call } from "./api.js";
import { addOnsFor, definitions, defaultsOf, isHere, models } from "./catalogue.js";
import { fill, h, icon } from "./dom.js";
import { bytes, parameters, sentence } from "./format.js";
import { go } from "./router.js";
import { remember, remembered } from "./store.js";
import { announce, failed, toast } from "./toast.js";

const ASK = 1000;
const SECTIONS = [
  ["here", "On this machine", (row) => isHere(row) && !["preset", "lora", "add-on"].includes(row.kind)],
  ["lora", "LoRAs", (row) => row.kind === "lora"],
  ["add-on", "Add-ons", (row) => row.kind === "add-on"],
  ["fetch", "Can be fetched", (row) => !isHere(row) && !["lora", "add-on"].includes(row.kind)],
  ["preset", "Presets without trained weights", (row) => isHere(row) && row.kind === "preset"],
];
const ABOUT = {
  preset:
    "Architectures of the supported papers, for tests and training: their clips are noise until they are trained.",
  lora: "Small files that change a model's style or motion. Choose a weight and use it in Make.",
  "add-on": "Parts that a model loads into one of its slots, such as a style.",
};

export async function mount(root) {
  const filter = h("input", {
    type: "search",
    placeholder: "Filter models",
    "aria-label": "Filter models",
    oninput: () => draw(),
  });
  const disk = h("p", { class: "muted" });
  const body = h("div", { class: "stack" });
  const { fields } = await definitions();
  let rows = await models(true);
  let timer = 0;

  const running = (row) => row.download?.state === "running";
  async function ask() {
    clearTimeout(timer);
    try {
      rows = await models(true);
      draw();
    } catch (error) {
      failed(error);
    }
    if (rows.some(running)) timer = setTimeout(ask, ASK);
  }
  async function act(method, row, words) {
    try {
      await call(method, `/v1/models/${row.id}/download`, method === "POST" ? {} : undefined);
      announce(words);
    } catch (error) {
      failed(error);
    }
    await ask();
  }
  function use(row) {
    const { add, ...values } = remembered("values", {});
    const same = (values.model ?? fields.model.default) === row.id;
    remember("values", { ...values, ...(same && add ? { add } : {}), model: row.id }); // add-ons are parts of a model
    go("make");
  }
  function useLora(row, weight) {
    const values = remembered("values", {});
    const others = (values.lora ?? []).filter((each) => each.name !== row.id);
    remember("values", { ...values, lora: [...others, { name: row.id, weight }] });
    toast(`${row.id} is in the form, with weight ${weight}.`, {
      action: { label: "Go to Make", run: () => go("make") },
    });
  }

  /** Put an add-on into the form, with a model that takes it. */
  function useAddOn(row) {
    const values = remembered("values", {});
    const takes = (model) => addOnsFor(model, [row]).length > 0;
    const model = [rows.find((each) => each.id === values.model), ...rows.filter(isHere)].find((each) => each && takes(each));
    if (!model) return void toast(`No model here takes ${row.id}.`, { error: true });
    const others = (values.model === model.id ? (values.add ?? []) : []).filter((each) => each.slot !== row.slot);
    remember("values", { ...values, model: model.id, add: [...others, { slot: row.slot, name: row.id }] });
    toast(`${row.id} is in the form, with the model ${model.id}.`, {
      action: { label: "Go to Make", run: () => go("make") },
    });
    draw();
    return undefined;
  }

  function facts(row) {
    const own = defaultsOf(row);
    return [
      row.family,
      own.takes_prompt === false && "needs no prompt",
      row.parameters && `${parameters(row.parameters)} parameters`,
      own.width && `${own.frames} frames of ${own.width}×${own.height}`,
      row.bytes && bytes(row.bytes),
      row.licence,
    ].filter(Boolean);
  }
  function card(row) {
    const chosen = (remembered("values", {}).model ?? fields.model.default) === row.id;
    return h(
      "li",
      { class: "model" },
      h(
        "div",
        { class: "model-words" },
        h("h3", {}, row.id, chosen && h("span", { class: "badge" }, "in the form")),
        h("p", { class: "muted" }, facts(row).join(" · ")),
        row.about && h("p", { class: "muted" }, row.about),
        namedSizes(row),
      ),
      h("div", { class: "model-actions" }, buttons(row)),
    );
  }
  function namedSizes(row) {
    const names = Object.keys(defaultsOf(row).sizes ?? {});
    return names.length
      ? h(
          "details",
          {},
          h("summary", { class: "muted" }, icon("chevron"), `${names.length} named sizes`),
          h("p", { class: "muted" }, names.join(", ")),
        )
      : null;
  }
  function buttons(row) {
    if (running(row)) return transfer(row);
    if (row.kind === "lora") return loraButtons(row);
    if (row.kind === "add-on")
      return [
        h("span", { class: "muted" }, `slot ${row.slot}`),
        h(
          "button",
          { type: "button", class: "quiet", onclick: () => useAddOn(row), "aria-label": `Use ${row.id}` },
          "Use",
        ),
      ];
    if (isHere(row))
      return h(
        "button",
        { type: "button", class: "quiet", onclick: () => use(row), "aria-label": `Use ${row.id}` },
        "Use",
      );
    if (!rows.downloads) return null;
    const failure =
      row.download?.state === "failed" &&
      h("span", { class: "error-text" }, sentence(row.download.error ?? "the download failed"));
    const size = row.download?.total ?? row.bytes;
    return [
      failure,
      h(
        "button",
        {
          type: "button",
          class: "quiet",
          onclick: () => act("POST", row, `Fetching ${row.id}`),
          "aria-label": `Fetch ${row.id}`,
        },
        icon("down"),
        size ? `Fetch, ${bytes(size)}` : "Fetch",
      ),
    ];
  }
  function transfer(row) {
    const { bytes: done = 0, total = 0 } = row.download;
    return [
      h("progress", { ...(total ? { max: total, value: done } : {}), "aria-label": `Fetching ${row.id}` }),
      h("span", { class: "muted" }, total ? `${bytes(done)} of ${bytes(total)}` : bytes(done)),
      h(
        "button",
        {
          type: "button",
          class: "quiet small",
          onclick: () => act("DELETE", row, "Cancelled"),
          "aria-label": `Cancel fetching ${row.id}`,
        },
        "Cancel",
      ),
    ];
  }
  function loraButtons(row) {
    const weight = h("input", {
      type: "number",
      step: 0.05,
      value: 1,
      class: "narrow",
      "aria-label": `Weight of ${row.id}`,
    });
    return [
      weight,
      h(
        "button",
        {
          type: "button",
          class: "quiet",
          "aria-label": `Use ${row.id}`,
          onclick: () => useLora(row, Number(weight.value) || 1),
        },
        "Use",
      ),
    ];
  }
  function about(key) {
    if (key === "fetch")
      return rows.downloads
        ? "Published models. Their size is known when a download starts."
        : "Published models. This service fetches nothing; start it with --allow-downloads to fetch them here.";
    return ABOUT[key];
  }
  const opened = new Set(["here", "lora", "add-on", "fetch"]);
  function draw() {
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    const kept = rows.filter((row) =>
      words.every((word) => `${row.id} ${row.family} ${row.kind} ${row.licence}`.toLowerCase().includes(word)),
    );
    const used = rows.filter((row) => isHere(row)).reduce((sum, row) => sum + (row.bytes ?? 0), 0);
    disk.textContent = `${bytes(used)} on this disk`;
    const parts = SECTIONS.map(([key, title, belongs]) => {
      const members = kept.filter(belongs);
      if (!members.length) return null;
      const details = h(
        "details",
        {
          class: "group",
          open: opened.has(key) || words.length > 0,
          ontoggle: () => words.length || (details.open ? opened.add(key) : opened.delete(key)),
        },
        h("summary", {}, icon("chevron"), h("h2", {}, title), h("span", { class: "muted" }, `${members.length}`)),
        about(key) && h("p", { class: "muted" }, about(key)),
        h("ul", { class: "models" }, members.map(card)),
      );
      return details;
    });
    fill(body, parts, kept.length ? null : h("p", { class: "muted" }, "No model has these words."));
  }
  fill(
    root,
    h("div", { class: "page" }, h("header", { class: "page-head" }, h("h1", {}, "Models"), disk, filter), body),
  );
  draw();
  if (rows.some(running)) timer = setTimeout(ask, ASK);
  return () => clearTimeout(timer);
}
