// The view Make: a form, the plan of what it would give, and the clip.

import { call } from "./api.js";
import { definitions, models } from "./catalogue.js";
import { fill, h, icon } from "./dom.js";
import { dropAnywhere } from "./drop.js";
import { isFinal } from "./events.js";
import { isMedia, send } from "./files.js";
import { form } from "./form.js";
import { sentence } from "./format.js";
import { current, forget, refresh, subscribe, update } from "./jobs.js";
import { fieldsOf, orderOf, valuesOf } from "./order.js";
import { planPanel } from "./plan.js";
import { offerRecipe } from "./reuse.js";
import { STATES, screen } from "./screen.js";
import { remember, remembered } from "./store.js";
import { hasClip, thumbnail } from "./thumb.js";
import { announce, failed, toast } from "./toast.js";

const INPUTS = ["video", "image"];
const SHOWN = 12;
const CONTINUE = ["extend", "edit", "inpaint", "interpolate", "upscale", "animate"];

/** Set the form that Make shows next: for "reuse settings" in other views. */
export function setForm(verb, values) {
  remember("verb", verb);
  remember("values", values);
}

/** Use a job's clip as the input of a verb. */
export function setInput(verb, video) {
  const words = { ...video.settled, ...video.result };
  const file = { id: video.id, name: video.prompt || video.id, kind: "video", frames: words.frames, fps: words.fps, width: words.width, height: words.height };
  const values = { ...remembered("values", {}), [verb === "animate" ? "image" : "video"]: file };
  for (const name of ["start", "end", "seed", "size", ...(verb === "animate" ? [] : ["frames"])]) delete values[name];
  setForm(verb, values);
}

export async function mount(root) {
  const [defined, rows] = await Promise.all([definitions(), models().catch(() => [])]);
  const view = makeView(defined, rows);
  fill(root, view.element);
  view.begin();
  return view.destroy;
}

function makeView(defined, rows) {
  let verb = defined.verbs.has(remembered("verb")) ? remembered("verb") : defined.order[0];
  let values = structuredClone(remembered("values", {}));
  let fields = null;
  const stop = new AbortController();

  const example = /"([^"]+)"/.exec(defined.verbs.get("generate")?.example ?? "")?.[1] ?? "a red ball rolls right";
  const about = h("p", { class: "about" });
  const place = h("div", {});
  const offer = h("div", { class: "offer", hidden: true });
  const problem = h("p", { class: "error-box", role: "alert", hidden: true });
  const plan = planPanel({ refused: (error) => fields.fail(error), accepted: () => fields.clearErrors() });
  const submit = h("button", { type: "submit", class: "primary" });
  const element_form = h("form", { class: "panel make-form", "aria-label": "Settings", noValidate: true, onsubmit: (event) => (event.preventDefault(), generate()) }, verbChips(), about, offer, place, problem, h("div", { class: "submit-bar" }, plan.element, h("div", { class: "submit-row" }, submit, h("span", { class: "muted keys" }, "Ctrl + Enter"), h("button", { type: "button", class: "quiet small", onclick: clear }, "Clear"))));
  const look = screen({ actions, empty });
  const strip = h("ul", { class: "strip", "aria-label": "Recent clips" });
  const side = h("div", { class: "make-side" }, look.element, strip);
  const element = h("div", { class: "make" }, element_form, side);

  // ------------------------------------------------------------------------------- the form

  function verbChips() {
    const chips = defined.order.map((name) => h("label", { class: "verb" }, h("input", { type: "radio", name: "verb", value: name, checked: name === verb, onchange: () => choose(name) }), h("span", {}, sentence(name))));
    return h("fieldset", { class: "verbs" }, h("legend", { class: "visually-hidden" }, "What to do"), chips);
  }
  function choose(name, after = {}) {
    verb = name;
    Object.assign(values, after);
    remember("verb", verb);
    remember("values", values);
    draw();
  }
  function draw() {
    for (const each of element_form.querySelectorAll("input[name=verb]")) each.checked = each.value === verb;
    about.textContent = defined.verbs.get(verb).about.replaceAll(/ ?\(--[\w-]+(, [^)]*)?\)/g, "").replaceAll(/--([\w-]+)/g, (_, name) => name.replaceAll("-", " "));
    offer.hidden = true;
    problem.hidden = true;
    fields = form(defined, verb, {
      values: () => values,
      changed,
      taken,
      model: () => rows.find((row) => row.id === (values.model || defined.fields.model.default)),
      models: () => rows,
    });
    fill(place, fields.element);
    submit.replaceChildren(icon("make"), sentence(verb));
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
    const names = fieldsOf(defined, verb).map((field) => field.name);
    if (verb === "animate" && !values.image && !values.image_model && !values.keyframes && !values.last_image) return "Choose an image to animate.";
    if (names.includes("video") && !values.video && !(verb === "interpolate" && values.image)) return `Choose a clip to ${verb}.`;
    if (verb === "inpaint" && !values.region && !values.mask) return "Drag a box where new content is generated, or give a mask.";
    const silent = ["interpolate", "upscale"].includes(verb) || rows.find((row) => row.id === (values.model || defined.fields.model.default))?.defaults?.takes_prompt === false;
    if (!silent && !values.prompt && !values.prompt_spans) return "Describe the clip, and its size, time and memory are shown here.";
    return "";
  }
  function clear() {
    const [oldVerb, old] = [verb, values];
    values = {};
    choose(verb);
    toast("The form was cleared.", { action: { label: "Undo", run: () => apply(oldVerb, old) } });
  }
  function apply(name, next) {
    values = structuredClone(next);
    choose(defined.verbs.has(name) ? name : verb);
  }
  async function generate() {
    submit.disabled = true;
    submit.lastChild.textContent = "Sending…";
    problem.hidden = true;
    fields.clearErrors();
    try {
      const video = await call("POST", "/v1/videos", orderOf(defined, verb, values));
      update(video);
      watch(video, true);
      announce("In the queue");
      refresh();
    } catch (error) {
      if (!fields.fail(error)) {
        problem.textContent = sentence(error.message);
        problem.hidden = false;
      }
      element_form.querySelector("[aria-invalid]")?.focus();
    } finally {
      submit.disabled = false;
      submit.lastChild.textContent = sentence(verb);
    }
  }

  // -------------------------------------------------------------------------- files

  function taken(field, value) {
    offerRecipe(defined, value, offer, useSettings);
  }
  function useSettings(found, name) {
    const [oldVerb, old] = [verb, structuredClone(values)];
    const kept = Object.fromEntries(INPUTS.filter((each) => values[each] && found.verb === verb).map((each) => [each, values[each]]));
    apply(found.verb, { ...found.values, ...kept });
    const lost = found.inputs.filter((each) => !values[each]);
    const more = lost.length ? ` Its ${lost.join(" and ")} must be given again.` : "";
    toast(`These are the settings of ${name}.${more}`, { action: { label: "Undo", run: () => apply(oldVerb, old) } });
  }
  /** A file that was dropped anywhere or pasted: into the verb's input, or into the verb that it suits. */
  async function take(file) {
    if (!isMedia(file)) return toast(`${file.name} is no image or clip; expected a file such as .png, .jpg, .gif or .mp4`, { error: true });
    const input = INPUTS.map((name) => defined.verbs.get(verb).first.includes(name) && fields.field(name)).find(Boolean);
    if (input) return input.take(file);
    try {
      offer.hidden = false;
      const value = await send(file, offer);
      offer.hidden = true;
      if (value.kind === "video" && (await offerRecipe(defined, value, offer, useSettings, true))) return undefined;
      const next = value.kind === "video" ? "extend" : "animate";
      choose(next, { [value.kind === "video" ? "video" : "image"]: value });
      return toast(`Now: ${next} ${value.name}.`, { action: { label: "Undo", run: () => choose("generate") } });
    } catch (error) {
      offer.hidden = true;
      return failed(error);
    }
  }

  // ------------------------------------------------------------------------- the clip

  function watch(video, scroll = false) {
    remember("watching", video?.id ?? null);
    look.watch(video);
    drawStrip();
    if (scroll && look.element.getBoundingClientRect().top > innerHeight * 0.8) look.element.scrollIntoView({ block: "start" });
  }
  function empty() {
    return [
      h("div", { class: "screen-frame blank" }, icon("make")),
      h("div", { class: "caption" }, h("p", { class: "caption-prompt" }, "Your clip appears here"), h("p", { class: "muted" }, "Describe it and press Generate. While it runs you see a preview after each step. You can also drop an image or a clip anywhere on this page.")),
      h("div", { class: "actions" }, h("button", { type: "button", class: "quiet", onclick: () => apply("generate", { ...values, prompt: example }) }, `Try “${example}”`)),
    ];
  }
  function actions(video) {
    const order = video.request && { model: video.model, request: video.request };
    const onward = h("select", { class: "compact", "aria-label": "Use this clip for", onchange: () => onward.value && (setInput(onward.value, video), apply(remembered("verb"), remembered("values"))) }, h("option", { value: "" }, "Use clip for…"), CONTINUE.map((name) => h("option", { value: name }, sentence(name))));
    return [
      hasClip(video) && onward,
      order && h("button", { type: "button", class: "quiet", onclick: () => reuse(order) }, icon("reuse"), "Reuse settings"),
      order && hasClip(video) && h("button", { type: "button", class: "quiet", onclick: () => anew(order) }, icon("dice"), "Again, new seed"),
      !hasClip(video) && h("button", { type: "button", class: "quiet", onclick: () => retry(video) }, icon("retry"), "Try again"),
      h("button", { type: "button", class: "quiet", onclick: () => remove(video) }, icon("trash"), "Delete"),
    ];
  }
  function reuse(order) {
    const found = valuesOf(defined, order);
    apply(found.verb, found.values);
    element_form.scrollIntoView({ block: "nearest" });
    announce("The form has the settings of this clip");
  }
  async function anew(order) {
    const { seed: _, ...request } = order.request;
    try {
      const video = await call("POST", "/v1/videos", { model: order.model, request });
      update(video);
      watch(video);
    } catch (error) {
      failed(error);
    }
  }
  async function retry(video) {
    try {
      const after = await call("POST", `/v1/videos/${video.id}/retry`, {});
      update(after);
      watch(after);
    } catch (error) {
      failed(error);
    }
  }
  function remove(video) {
    forget(video.id);
    watch(current.videos.find(hasClip) ?? null);
    let undone = false;
    const finish = () => undone || call("DELETE", `/v1/videos/${video.id}`).catch(failed);
    const timer = setTimeout(finish, 6000);
    addEventListener("pagehide", finish, { once: true, signal: stop.signal });
    toast("The clip was deleted.", { action: { label: "Undo", run: () => ((undone = true), clearTimeout(timer), refresh(), watch(video)) } });
  }
  function drawStrip() {
    const watched = look.current()?.id;
    fill(
      strip,
      current.videos.slice(0, SHOWN).map((video) =>
        h("li", {}, h("button", { type: "button", class: `strip-item ${video.status}`, "aria-current": video.id === watched ? "true" : undefined, title: video.prompt || video.id, onclick: () => watch(video) }, thumbnail(video), h("span", { class: "strip-words" }, STATES[video.status]), h("span", { class: "visually-hidden" }, `: ${video.prompt || "clip"}`))),
      ),
    );
    strip.hidden = !current.videos.length;
  }
  let drawn = "";
  let finished = 0;
  function jobsChanged({ videos }) {
    const watched = look.current();
    const now = watched && videos.find((each) => each.id === watched.id);
    if (now) look.watch(now);
    const done = videos.filter((each) => each.status === "completed").length;
    if (done > finished && fields) ask(); // its time is known now
    finished = done;
    const state = JSON.stringify([look.current()?.id, videos.slice(0, SHOWN).map((each) => [each.id, each.status, each.progress])]);
    if (state !== drawn) drawStrip();
    drawn = state;
  }
  /** The job that was looked at before a reload, else one that runs, else the latest clip. */
  async function begin() {
    draw();
    look.watch(null);
    await refresh();
    const id = remembered("watching");
    const known = current.videos.find((each) => each.id === id) ?? (id ? await call("GET", `/v1/videos/${id}`).catch(() => null) : null);
    watch(known ?? current.videos.find((each) => !isFinal(each)) ?? current.videos.find(hasClip) ?? null);
  }

  const unsubscribe = subscribe(jobsChanged);
  dropAnywhere(element, take, stop.signal);
  addEventListener("keydown", (event) => {
    if ((event.ctrlKey || event.metaKey) && event.key === "Enter" && !submit.disabled) (event.preventDefault(), generate());
  }, { signal: stop.signal });

  return {
    element,
    begin,
    destroy() {
      stop.abort();
      unsubscribe();
      plan.destroy();
      look.destroy();
    },
  };
}
