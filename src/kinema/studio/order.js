// Between the values of a form and an order of the service: {model, add, request}.

/** Whether a value is the field's default, and need not be sent. */
export function isDefault(field, value) {
  if (value === null || value === undefined || value === "" || (Array.isArray(value) && !value.length)) return true;
  return JSON.stringify(value) === JSON.stringify(field.default);
}

/** The fields of a verb by name. */
export function fieldsOf(definitions, verb) {
  return definitions.verbs.get(verb).groups.flatMap((group) => group.fields.map((name) => definitions.fields[name]));
}

/** The order of these values; values of other verbs' fields are left out. */
export function orderOf(definitions, verb, values) {
  const order = { model: values.model || definitions.fields.model.default, request: { task: verb } };
  for (const field of fieldsOf(definitions, verb)) {
    const value = values[field.name];
    if (field.name === "model" || field.name === "width" || field.name === "height") continue;
    if (isDefault(field, value)) continue;
    if (field.name === "add") order.add = toPlain(field, value);
    else put(order.request, field, value);
  }
  return order;
}

/** The order that gave a video, with changes of its request: to repeat it, or to put it into a form. */
export function orderOfVideo({ model, add, request }, changes = {}) {
  return { model, ...(Object.keys(add ?? {}).length ? { add } : {}), request: { ...request, ...changes } };
}

function put(request, field, value) {
  if (field.type === "size") return putSize(request, value);
  const plain = toPlain(field, value);
  if (plain === undefined) return undefined;
  const [outer, inner] = field.place.split(".");
  if (!inner) request[outer] = outer === "extra" ? { ...request.extra, ...plain } : plain;
  else request[outer] = { ...request[outer], [inner]: plain };
  return undefined;
}

function putSize(request, value) {
  if (value.name) request.size = value.name;
  else {
    if (value.width) request.width = value.width;
    if (value.height) request.height = value.height;
  }
}

function toPlain(field, value) {
  switch (field.type) {
    case "file":
      return value.id;
    case "files_by_frame":
      return table(
        value.filter((each) => each.file),
        "frame",
        (each) => each.file.id,
      );
    case "texts_by_frame":
      return table(
        value.filter((each) => `${each.frames}`.trim()),
        "frames",
        (each) => each.text,
      );
    case "loras":
      return table(
        value.filter((each) => each.name),
        "name",
        (each) => each.weight ?? 1,
      );
    case "add_ons":
      return table(
        value.filter((each) => each.slot),
        "slot",
        (each) => each.name,
      );
    case "numbers":
      return table(
        value.filter((each) => each.key),
        "key",
        (each) => plainValue(each.value),
      );
    case "mapping":
      return table(
        value.filter((each) => each.key),
        "key",
        (each) => plainValue(each.value),
        (key) => key.replaceAll("-", "_"),
      );
    case "pair": // null is an open end, where the field has one
      return value.every((each) => each === null) ? undefined : value;
    case "box":
      return value.some((each) => each === null) ? undefined : value;
    default:
      return value;
  }
}

function table(entries, key, valueOf, named = (each) => each) {
  return entries.length
    ? Object.fromEntries(entries.map((each) => [named(`${each[key]}`.trim()), valueOf(each)]))
    : undefined;
}

/** Text as JSON if it is JSON ("127", "true"), else as text. */
function plainValue(text) {
  try {
    return JSON.parse(text);
  } catch {
    return text;
  }
}

const TO_FORM = {
  file: (value) => ({ id: value, name: value }),
  files_by_frame: (value) =>
    Object.entries(value).map(([frame, id]) => ({ frame: Number(frame), file: { id, name: id } })),
  texts_by_frame: (value) => Object.entries(value).map(([frames, text]) => ({ frames, text })),
  loras: (value) => Object.entries(value).map(([name, weight]) => ({ name, weight })),
  add_ons: (value) => Object.entries(value).map(([slot, name]) => ({ slot, name })),
  numbers: (value) => Object.entries(value).map(([key, each]) => ({ key, value: `${each}` })),
  mapping: (value) =>
    Object.entries(value).map(([key, each]) => ({
      key,
      value: typeof each === "string" ? each : JSON.stringify(each),
    })),
};

/** The verb and values of an order, for a form: {verb, values}. */
export function valuesOf(definitions, { model, add = {}, request }) {
  const { task: verb = "generate", width, height, size, extra = {}, ...rest } = request;
  const values = { model };
  if (Object.keys(add).length) values.add = TO_FORM.add_ons(add);
  if (size) values.size = { name: size };
  else if (width || height) values.size = { width: width ?? null, height: height ?? null };
  const others = { ...extra };
  for (const field of fieldsOf(definitions, verb)) {
    const [outer, inner] = field.place.split(".");
    const found = inner
      ? others[inner]
      : ["extra", "model", "size", "add"].includes(outer)
        ? undefined
        : rest[outer];
    if (inner) delete others[inner];
    if (found !== undefined && found !== null)
      values[field.name] = (TO_FORM[field.type] ?? ((each) => each))(found);
  }
  if (Object.keys(others).length) values.extra = TO_FORM.mapping(others);
  return { verb, values };
}

/**
 * The settings in a clip's recipe, without its files: {verb, values, inputs: names of files it had}. ``own(model)`` gives
 * the add-ons that a model has by itself, by slot.
 */
export function valuesOfRecipe(definitions, recipe, own = () => ({})) {
  const stages = recipe.stages ?? [];
  const base = stages.find((each) => each.stage === "base") ?? stages[0];
  if (!base?.request) return null;
  const request = { ...base.request };
  for (const name of ["image", "last_image", "video", "mask", "keyframes", "masks"]) delete request[name];
  const second = stages.find((each) => each.stage === "super-resolution");
  if (second && base !== second) request.super_resolution = second.model;
  if (base.loras?.length) request.loras ??= Object.fromEntries(base.loras.map(({ file, weight }) => [file, weight]));
  const others = (base.added ?? []).filter(({ slot, file }) => !own(base.model)[slot]?.endsWith(file));
  const add = Object.fromEntries(others.map(({ slot, file }) => [slot, file]));
  return { ...valuesOf(definitions, { model: base.model, add, request }), inputs: Object.keys(recipe.inputs ?? {}) };
}

/** A recipe as it is stored: JSON, with the Infinity and NaN that Python writes as null. */
export function parseRecipe(text) {
  return JSON.parse(text.replace(/("(?:[^"\\]|\\.)*")|-?\bInfinity\b|\bNaN\b/g, (all, quoted) => quoted ?? "null"));
}
