// One clip of the gallery in full: player, what to do with it, and its recipe.

import { call, contentPath, open as fetchPath } from "./api.js";
import { clipView } from "./clips.js";
import { fill, h, icon, iconButton } from "./dom.js";
import { follow, isFinal } from "./events.js";
import { ago, duration, sentence } from "./format.js";
import { refresh, update } from "./jobs.js";
import { setForm, setInput } from "./make.js";
import { orderOfVideo, parseRecipe, valuesOf } from "./order.js";
import { go } from "./router.js";
import { downloads } from "./screen.js";
import { hasClip } from "./thumb.js";
import { announce, failed, toast } from "./toast.js";

/** The dialog: {element, open(video), close()}. ``actions``: isLiked, like, remove, compare, seeds, closed, next. */
export function detailsDialog(defined, actions) {
  const body = h("div", { class: "details-body" });
  const title = h("h2", { id: "details-title" });
  const before = iconButton("back", "Previous clip", () => turn(-1));
  const after = iconButton("forward", "Next clip", () => turn(1));
  const element = h(
    "dialog",
    { class: "details", "aria-labelledby": "details-title" },
    h(
      "div",
      { class: "details-head" },
      title,
      before,
      after,
      iconButton("close", "Close", () => element.close()),
    ),
    body,
  );
  let shown = null;
  let made = null;

  function open(video) {
    made?.destroy();
    made = null;
    shown = video;
    history.replaceState(null, "", `#gallery/${video.id}`);
    title.textContent = video.prompt || sentence(video.verb ?? "clip");
    before.disabled = !actions.next(video.id, -1);
    after.disabled = !actions.next(video.id, 1);
    const facts = {
      ...video.settled,
      ...Object.fromEntries(Object.entries(video.result ?? {}).filter(([, value]) => value !== null)),
    };
    if (hasClip(video))
      made = clipView(video, facts);
    const recipe = h("div", { class: "recipe" }, h("p", { class: "muted" }, "Reading the recipe…"));
    fill(
      body,
      h(
        "div",
        { class: "details-look" },
        made?.element ??
          h("p", { class: "error-box" }, sentence(video.error?.message ?? `${video.status}: there is no clip`)),
        buttons(video),
      ),
      h("div", { class: "details-side" }, summary(video, facts), recipe),
    );
    if (hasClip(video)) showRecipe(video, recipe);
    else fill(recipe, factList(Object.entries(video.request ?? {})));
    if (!element.open) element.showModal();
  }
  function turn(by) {
    const next = actions.next(shown.id, by);
    if (next) open(next);
  }
  element.addEventListener("close", () => {
    made?.destroy();
    made = null;
    if (location.hash.startsWith("#gallery/")) history.replaceState(null, "", "#gallery");
    if (shown) actions.closed(shown.id);
    shown = null;
  });
  element.addEventListener("click", (event) => event.target === element && element.close());
  const shut = () => element.open && element.close();

  function buttons(video) {
    const order = video.request && orderOfVideo(video);
    const button = (name, words, onclick, more = {}) =>
      h("button", { type: "button", class: "quiet", onclick, ...more }, icon(name), words);
    const clip = hasClip(video);
    const liked = button(
      "heart",
      "Favourite",
      () => (actions.like(video), liked.setAttribute("aria-pressed", `${actions.isLiked(video.id)}`)),
      { "aria-pressed": `${actions.isLiked(video.id)}` },
    );
    const verdict = h("p", { class: "verdict", role: "status", hidden: true });
    return [
      h(
        "div",
        { class: "actions" },
        order && button("reuse", "Reuse settings", () => reuse(order)),
        clip && order && button("retry", "Replay", (event) => replay(video, event.currentTarget, verdict)),
        clip && button("extend", "Extend from here", () => extend(video)),
        order && button("timeline", "Open in timeline", () => (shut(), go("timeline", video.id))),
        clip && button("compare", "Compare", () => actions.compare({ ...video, clip: made.clip() })),
        clip && order && seeds(video),
        clip && downloads(video, made.clip),
        liked,
        button("trash", "Delete", () => actions.remove(video)),
      ),
      verdict,
    ];
  }
  function seeds(video) {
    const count = h(
      "select",
      { class: "compact", "aria-label": "Number of seeds" },
      [2, 4, 6, 9, 12, 16].map((each) => h("option", { value: each, selected: each === 4 }, `${each}`)),
    );
    count.value = "4";
    return h(
      "span",
      { class: "joined" },
      h(
        "button",
        { type: "button", class: "quiet", onclick: () => actions.seeds(video, Number(count.value)) },
        icon("grid"),
        "Seed grid",
      ),
      count,
    );
  }
  async function extend(video) {
    try {
      await setInput("extend", video, made.clip());
    } catch (error) {
      return void failed(error);
    }
    shut();
    return go("make");
  }
  function reuse(order) {
    const { verb, values } = valuesOf(defined, order);
    setForm(verb, values);
    shut();
    go("make");
    announce("The form has the settings of this clip");
  }
  return { element, open, close: shut };
}

/** Generate a clip again from the same request and seed, and say whether all frames are the same. */
async function replay(video, button, verdict) {
  const say = (text, kind = "") => {
    verdict.hidden = false;
    verdict.className = `verdict ${kind}`;
    verdict.textContent = text;
    if (kind && !verdict.isConnected) toast(text);
  };
  button.disabled = true;
  try {
    const again = await call("POST", "/v1/videos", orderOfVideo(video, { seed: video.settled.seed }));
    update(again);
    refresh();
    say("Replaying: it waits for its turn.");
    let last = again;
    await follow(
      again.id,
      (kind, data) => {
        if (kind === "step") say(`Replaying: step ${data.index} of ${data.total}.`);
        if (kind === "status") update((last = { ...last, ...data }));
      },
      new AbortController().signal,
    );
    if (!isFinal(last) || last.status !== "completed")
      say(`The replay ended: ${last.error?.message ?? last.status}.`, "different");
    else {
      const [one, other] = await Promise.all([recipeOf(video.id), recipeOf(again.id)]);
      const same = one.frames_hash && one.frames_hash === other.frames_hash;
      say(
        same
          ? "Identical: the replay has the same frames to the last bit."
          : "Different: the replay's frames are not the same. Another machine, version or number of threads can cause this.",
        same ? "identical" : "different",
      );
    }
  } catch (error) {
    failed(error);
    verdict.hidden = true;
  }
  button.disabled = false;
}

/** The hashes of a stage's weights: one, or by file. */
const hashes = (weights) => (typeof weights === "string" ? [["hash", weights]] : Object.entries(weights ?? {}));

const recipeOf = async (id) => parseRecipe(await (await fetchPath(contentPath(id, "recipe"))).text());

function summary(video, facts) {
  const took = video.started_at && video.completed_at ? duration(video.completed_at - video.started_at) : null;
  const rows = [
    ["Model", video.model],
    ["Add-ons", Object.values(video.add ?? {}).join(", ")],
    ["Verb", sentence(video.verb ?? facts.task ?? "")],
    ["Seed", `${video.seed ?? facts.seed ?? ""}`],
    ["Size", facts.width && `${facts.width}×${facts.height}`],
    ["Frames", facts.frames && `${facts.frames} at ${Number((facts.fps ?? 0).toFixed(2))} fps`],
    ["Steps", facts.steps],
    ["Made", ago(video.completed_at ?? video.created_at) + (took ? `, took ${took}` : "")],
  ];
  return h(
    "div",
    { class: "stack" },
    factList(rows.filter(([, value]) => value)),
    video.notes?.length
      ? h(
          "ul",
          { class: "reasons" },
          [...new Set(video.notes)].map((each) => h("li", {}, sentence(each))),
        )
      : null,
  );
}

const asText = (value) => (typeof value === "string" ? value : JSON.stringify(value));
const factList = (rows) =>
  h(
    "dl",
    { class: "facts recipe-facts" },
    rows.map(([name, value]) => [h("dt", {}, name), h("dd", {}, asText(value))]),
  );

async function showRecipe(video, place) {
  let recipe;
  try {
    recipe = await recipeOf(video.id);
  } catch (error) {
    return void fill(place, h("p", { class: "muted" }, sentence(error.message)));
  }
  const stages = recipe.stages ?? [recipe];
  const section = (name, rows, open = false) =>
    rows.length
      ? h("details", { class: "group", open }, h("summary", {}, icon("chevron"), name), factList(rows))
      : null;
  const flat = (table) =>
    Object.entries(table ?? {}).filter(([, value]) => value !== null && value !== "" && JSON.stringify(value) !== "{}");
  const used = (stage) => flat(stage.request ?? {}).filter(([name]) => name !== "prompt" && name !== "loras");
  return void fill(
    place,
    stages.map((stage) => [
      section(`Options${stages.length > 1 ? ` (${stage.stage})` : ""}`, used(stage), true),
      section("LoRAs", flat(stage.request?.loras)),
      section(
        "Add-ons",
        (stage.added ?? []).map(({ slot, file }) => [slot, file]),
      ),
      section(`Weights${stages.length > 1 ? ` (${stage.stage})` : ""}`, hashes(stage.weights)),
    ]),
    section("Inputs", flat(recipe.inputs)),
    section(
      "Recipe",
      flat(recipe).filter(([name]) => !["stages", "inputs", "request", "weights"].includes(name)),
    ),
  );
}
