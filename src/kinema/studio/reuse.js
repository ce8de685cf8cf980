// The settings of a clip that Kinema generated, read from the recipe inside the file.

import { open } from "./api.js";
import { defaultsOf, models } from "./catalogue.js";
import { fill, h } from "./dom.js";
import { parseRecipe, valuesOfRecipe } from "./order.js";

/** The settings in the recipe of an uploaded clip, or null if it has none. */
export async function settingsIn(definitions, value) {
  if (value?.kind !== "video" || !value.id.startsWith("asset-")) return null;
  try {
    const response = await open(`/v1/assets/${value.id}/recipe`);
    if (response.status === 204) return null;
    const rows = await models();
    const own = (name) => defaultsOf(rows.find((row) => row.id === name)).add_ons ?? {};
    return valuesOfRecipe(definitions, parseRecipe(await response.text()), own);
  } catch {
    return null;
  }
}

/**
 * If a clip has a recipe, use its settings at once (``now``), or offer to in ``place``. Returns whether it has one.
 * ``use(found, name)`` puts them into the form.
 */
export async function offerRecipe(definitions, value, place, use, now = false) {
  const found = await settingsIn(definitions, value);
  place.hidden = !found || now;
  if (found && now) use(found, value.name);
  else if (found) {
    const close = () => (place.hidden = true);
    fill(
      place,
      h("p", {}, "Kinema generated this clip", found.values.prompt ? `: “${found.values.prompt}”` : "", "."),
      h(
        "button",
        { type: "button", class: "quiet small", onclick: () => (close(), use(found, value.name)) },
        "Use its settings",
      ),
      h("button", { type: "button", class: "link small", onclick: close }, "No"),
    );
  }
  return Boolean(found);
}
