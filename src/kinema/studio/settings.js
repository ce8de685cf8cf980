// The panel of Make in which a clip is described: verb, form, plan, and the button that sends the order.

import { call } from "./api.js";
import { fill, h, icon } from "./dom.js";
import { isMedia, send } from "./files.js";
import { form } from "./form.js";
import { sentence } from "./format.js";
import { fieldsOf, orderOf } from "./order.js";
import { planPanel } from "./plan.js";
import { offerRecipe } from "./reuse.js";
import { remember, remembered } from "./store.js";
import { failed, toast } from "./toast.js";

const INPUTS = ["video", "image"];
const SILENT = ["interpolate", "upscale"];

/**
 * The panel: {element, apply(verb, values), values(), take(file), ask(), generate(), begin(), destroy()}.
 * ``defined`` are the definitions, ``rows`` the models; ``submitted(video)`` gets what was queued.
 */
export function settingsPanel(defined, rows, submitted) {
  let verb = defined.verbs.has(remembered("verb")) ? remembered("verb") : defined.order[0];
  let values = structuredClone(remembered("values", {}));
  let fields = null;

  const about = h("p", { class: "about" });
  const place = h("div", {});
  const offer = h("div", { class: "offer", hidden: true });
  const problem = h("p", { class: "error-box", role: "alert", hidden: true });
  const plan = planPanel({ refused: (error) => fields.fail(error), accepted: () => fields.clearErrors() });
  const submit = h("button", { type: "submit", class: "primary" });
  const element = h(
    "form",
    { class: "panel make-form", "aria-label": "Settings", noValidate: true },
    verbChips(),
    about,
    offer,
    place,
    problem,
    h(
      "div",
      { class: "submit-bar" },
      plan.element,
      h(
        "div",
        { class: "submit-row" },
        submit,
        h("span", { class: "muted keys" }, "Ctrl + Enter"),
        h("button", { type: "button", class: "quiet small", onclick: clear }, "Clear"),
      ),
    ),
  );
  element.addEventListener("submit", (event) => {
    event.preventDefault();
    generate();
  });

  function verbChips() {
    const chip = (name) => {
      const input = h("input", { type: "radio", name: "verb", value: name, onchange: () => choose(name) });
      return h("label", { class: "verb" }, input, h("span", {}, sentence(name)));
    };
    const legend = h("legend", { class: "visually-hidden" }, "What to do");
    return h("fieldset", { class: "verbs" }, legend, defined.order.map(chip));
  }
  function choose(name, more = {}) {
    verb = name;
    Object.assign(values, more);
    remember("verb", verb);
    remember("values", values);
    draw();
  }
  function apply(name, next) {
    values = structuredClone(next);
    choose(defined.verbs.has(name) ? name : verb);
  }
  const model = () => rows.find((row) => row.id === (values.model || defined.fields.model.default));
  function draw() {
    for (const each of element.querySelectorAll("input[name=verb]")) each.checked = each.value === verb;
    about.textContent = defined.verbs.get(verb).about;
    offer.hidden = true;
    problem.hidden = true;
    fields = form(defined, verb, { values: () => values, changed, taken, model, models: () => rows });
    fill(place, fields.element);
    fill(submit, icon("make"), sentence(verb));
    ask();
  }
  function changed() {
    remember("values", values);
    problem.hidden = true;
    ask();
  }
  function ask() {
    const missing = needed();
    if (missing) plan.say(missing);
    else plan.ask(orderOf(defined, verb, values));
  }
  /** What must still be given before a plan makes sense; "" if nothing. */
  function needed() {
    const takes = (name) => fieldsOf(defined, verb).some((field) => field.name === name);
    const others = values.image_model || values.keyframes || values.last_image;
    if (verb === "animate" && !values.image && !others) return "Choose an image to animate.";
    if (takes("video") && !values.video && !(verb === "interpolate" && values.image))
      return `Choose a clip to ${verb}.`;
    if (verb === "inpaint" && !values.region && !values.mask) {
      return "Drag a box where new content is generated, or give a mask.";
    }
    const silent = SILENT.includes(verb) || model()?.defaults?.takes_prompt === false;
    if (!silent && !values.prompt && !values.prompt_spans) {
      return "Describe the clip, and its size, time and memory are shown here.";
    }
    return "";
  }
  function clear() {
    const [oldVerb, old] = [verb, values];
    apply(verb, {});
    toast("The form was cleared.", { action: { label: "Undo", run: () => apply(oldVerb, old) } });
  }
  async function generate() {
    if (submit.disabled) return;
    submit.disabled = true;
    submit.lastChild.textContent = "Sending…";
    problem.hidden = true;
    fields.clearErrors();
    try {
      submitted(await call("POST", "/v1/videos", orderOf(defined, verb, values)));
    } catch (error) {
      if (!fields.fail(error)) {
        problem.textContent = sentence(error.message);
        problem.hidden = false;
      }
      element.querySelector("[aria-invalid]")?.focus();
    } finally {
      submit.disabled = false;
      submit.lastChild.textContent = sentence(verb);
    }
  }

  // -------------------------------------------------------------------------------- files

  function taken(field, value) {
    offerRecipe(defined, value, offer, useSettings);
  }
  function useSettings(found, name) {
    const [oldVerb, old] = [verb, structuredClone(values)];
    const same = found.verb === verb ? INPUTS.filter((each) => values[each]) : [];
    const kept = Object.fromEntries(same.map((each) => [each, values[each]]));
    apply(found.verb, { ...found.values, ...kept });
    const lost = found.inputs.filter((each) => !values[each]);
    const more = lost.length ? ` Its ${lost.join(" and ")} must be given again.` : "";
    toast(`These are the settings of ${name}.${more}`, { action: { label: "Undo", run: () => apply(oldVerb, old) } });
  }
  /** A file that was dropped anywhere or pasted: into the verb's input, or into the verb that it suits. */
  async function take(file) {
    if (!isMedia(file)) {
      toast(`${file.name} is no image or clip; expected a file such as .png, .jpg, .gif or .mp4`, { error: true });
      return;
    }
    const name = INPUTS.find((each) => defined.verbs.get(verb).first.includes(each));
    if (name) {
      fields.field(name).take(file);
      return;
    }
    offer.hidden = false;
    try {
      const value = await send(file, offer);
      offer.hidden = true;
      if (await offerRecipe(defined, value, offer, useSettings, true)) return;
      const [oldVerb, old] = [verb, structuredClone(values)];
      const [next, input] = value.kind === "video" ? ["extend", "video"] : ["animate", "image"];
      choose(next, { [input]: value });
      toast(`Now: ${next} ${value.name}.`, { action: { label: "Undo", run: () => apply(oldVerb, old) } });
    } catch (error) {
      offer.hidden = true;
      failed(error);
    }
  }

  return { element, apply, values: () => values, take, ask, generate, begin: draw, destroy: plan.destroy };
}
