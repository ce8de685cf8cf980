// What an order would give and cost, while it is typed: asked for after a pause, and forgotten if it is stale.

import { planOf } from "./api.js";
import { fill, h, icon } from "./dom.js";
import { bytes, counted, duration, sentence } from "./format.js";
import { remember, remembered } from "./store.js";

const PAUSE = 350;

/** The facts of a settled clip in a few words. */
export function clipFacts(settled) {
  const clips = settled.clips > 1 ? [counted(settled.clips, "clip")] : [];
  const seconds = settled.frames / settled.fps;
  return [
    ...clips,
    `${settled.width}×${settled.height}`,
    counted(settled.frames, "frame"),
    `${Number(seconds.toFixed(2))} s at ${Number(settled.fps.toFixed(2))} fps`,
  ];
}

/** The plan's panel: {element, ask(order), say(hint)}. ``refused(error)`` gets what the service refuses. */
export function planPanel({ refused, accepted }) {
  const facts = h("p", { class: "plan-facts" });
  const why = h("div", { class: "plan-why" });
  const details = h(
    "details",
    { class: "plan-details", open: remembered("planOpen", false), ontoggle: () => remember("planOpen", details.open) },
    h("summary", {}, icon("chevron"), "Plan and reasons"),
    why,
  );
  const element = h("section", { class: "plan", "aria-label": "Plan", "aria-live": "polite" }, facts, details);
  let timer = 0;
  let stop = new AbortController();

  function say(hint) {
    cancel();
    element.classList.remove("stale");
    fill(facts, h("span", { class: "muted" }, hint));
    details.hidden = true;
  }
  function cancel() {
    clearTimeout(timer);
    stop.abort();
  }
  function ask(order) {
    cancel();
    stop = new AbortController();
    const { signal } = stop;
    element.classList.add("stale");
    if (!facts.querySelector(".fact")) fill(facts, h("span", { class: "muted" }, "Planning…"));
    timer = setTimeout(async () => {
      try {
        show(await planOf(order, signal));
        accepted();
      } catch (error) {
        if (error.name === "AbortError" || signal.aborted) return;
        element.classList.remove("stale");
        details.hidden = true;
        fill(
          facts,
          refused(error)
            ? h("span", { class: "muted" }, "See the message above.")
            : h("span", { class: "error-text" }, sentence(error.message)),
        );
      }
    }, PAUSE);
  }
  function show(settled) {
    element.classList.remove("stale");
    const forecast = settled.forecast ?? {};
    const memory = forecast.needed_bytes
      ? `${bytes(forecast.needed_bytes)} of memory`
      : forecast.weight_bytes && `${bytes(forecast.weight_bytes)} of weights`;
    const time = settled.seconds ? `about ${duration(settled.seconds)}` : "time known after a first clip";
    const words = [...clipFacts(settled), time, memory].filter(Boolean);
    fill(
      facts,
      words.map((each) => h("span", { class: "fact" }, each)),
    );
    if (forecast.fits === false) facts.prepend(h("span", { class: "fact bad" }, "does not fit in memory"));
    const rows = [
      [
        "Model",
        [forecast.model, forecast.device && `on ${forecast.device}`, forecast.dtype && `in ${forecast.dtype}`]
          .filter(Boolean)
          .join(" "),
      ],
      ["Sampling", forecast.sampling ?? counted(settled.steps, "step")],
      ["Seed", settled.seed],
      [
        "Memory",
        [
          forecast.weight_bytes && `${bytes(forecast.weight_bytes)} of weights`,
          forecast.budget_bytes && `${bytes(forecast.budget_bytes)} may be used`,
          forecast.offload && forecast.offload !== "none" && `offload ${forecast.offload}`,
        ]
          .filter(Boolean)
          .join(", "),
      ],
      ["Time", [settled.seconds && `about ${duration(settled.seconds)}`, settled.measured].filter(Boolean).join(": ")],
    ];
    const reasons = [...new Set([...(settled.notes ?? []), ...(forecast.reasons ?? [])])].filter(
      (each) => !each.startsWith("time: not measured"),
    );
    fill(
      why,
      h(
        "dl",
        { class: "facts" },
        rows
          .filter(([, value]) => value || value === 0)
          .map(([name, value]) => [h("dt", {}, name), h("dd", {}, `${value}`)]),
      ),
      reasons.length
        ? h(
            "ul",
            { class: "reasons" },
            reasons.map((each) => h("li", {}, sentence(each))),
          )
        : null,
      (forecast.missing ?? []).map((each) => h("p", { class: "error-text" }, sentence(each))),
    );
    details.hidden = false;
  }
  return { element, ask, say, destroy: cancel };
}
