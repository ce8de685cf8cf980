// What the service offers: verbs and fields (/v1/options, asked once) and models (/v1/models, asked again on request).

import { call } from "./api.js";

let options = null;
let rows = null;

/** {fields: by name, verbs: by name, order: names of verbs}. */
export async function definitions() {
  options ??= call("GET", "/v1/options").then(
    ({ fields, verbs }) => ({
      fields,
      verbs: new Map(verbs.map((each) => [each.name, each])),
      order: verbs.map((each) => each.name),
    }),
    (error) => {
      options = null;
      throw error;
    },
  );
  return options;
}

/** All rows of /v1/models; ``fresh`` asks again. Their property ``downloads`` says whether the service fetches models. */
export async function models(fresh = false) {
  if (!rows || fresh) {
    rows = call("GET", "/v1/models").then(
      (list) => Object.assign(list.data.map((row) => whole(row, list.shared)), { downloads: list.downloads !== false }),
      (error) => {
        rows = null;
        throw error;
      },
    );
  }
  return rows;
}

/** A row with its tables of options and sizes in place of their names; see ``shared`` of /v1/models. */
function whole(row, shared) {
  if (!row.defaults) return row;
  const { extra, sizes } = row.defaults;
  return { ...row, defaults: { ...row.defaults, extra: shared[extra] ?? {}, sizes: shared[sizes] ?? {} } };
}

export const isModel = (row) => !["lora", "add-on"].includes(row.kind);
export const isLora = (row) => row.kind === "lora";

/** Whether a request may name it without a download. */
export const isHere = (row) => row.here !== false;

/** The size, frames and options that a model has by itself; {} if the service does not say. */
export const defaultsOf = (row) => row?.defaults ?? {};

/** Add-ons for a model among the rows, as {slot, name}: those of its family, and files, which may fit any of its slots. */
export function addOnsFor(model, rows) {
  const slots = defaultsOf(model).slots ?? [];
  const fits = (row, slot) =>
    row.kind === "add-on" ? row.slot === slot && row.family === model.family : row.kind === "file" && row.id !== model.id;
  return slots.flatMap((slot) => rows.filter((row) => fits(row, slot)).map((row) => ({ slot, name: row.id })));
}

/** Named sizes of a model as [name, [height, width]]. */
export function namedSizes(row) {
  return Object.entries(defaultsOf(row).sizes ?? {});
}
