// The view Timeline: one document, its frames large, tracks below, settings at the side; see document.js.

import { call, planOf } from "./api.js";
import { definitions, defaultsOf, models } from "./catalogue.js";
import { openDocument, sweep } from "./document.js";
import { fill, h, icon, iconButton } from "./dom.js";
import { dropAnywhere } from "./drop.js";
import { isMedia } from "./files.js";
import { sentence } from "./format.js";
import { jobPanel } from "./timelinejob.js";
import { inspector } from "./inspect.js";
import { masksOf } from "./maskset.js";
import { pictures } from "./pictures.js";
import { sidePanel } from "./side.js";
import { withSpan, spanKey } from "./spans.js";
import { stage } from "./stage.js";
import { announce, failed, toast } from "./toast.js";
import { transport } from "./transport.js";
import { tracks } from "./tracks.js";

const SUFFIX = ".kinema.json";
const TRACKS = { clip: "video", keyframes: "keyframes", prompts: "prompt_spans", masks: "masks" };

/** Open a video's document in the timeline that is shown next. */
export const inTimeline = (id) => (location.hash = `#timeline/${encodeURIComponent(id)}`);

export async function mount(root, { rest = [] } = {}) {
  const [defined, rows] = await Promise.all([definitions(), models().catch(() => [])]);
  const stop = new AbortController();
  let view = null;
  const doc = await openDocument((what) => view?.changed(what));
  sweep(doc);
  view = timeline(doc, defined, rows, stop.signal);
  fill(root, view.element);
  view.changed("all");
  if (rest[0]) await view.openVideo(rest[0]);
  return () => {
    stop.abort();
    view.destroy();
    doc.flush();
  };
}

function timeline(doc, defined, rows, signal) {
  let frame = doc.state.editor.frame ?? 0;
  let selected = null;
  let plan = null;
  let queued = 0;

  const verb = () => doc.request.task;
  const takes = (name) => defined.verbs.get(verb()).groups.some((group) => group.fields.includes(name));
  const model = () => rows.find((row) => row.id === (doc.state.model ?? defined.fields.model.default));
  const medium = (value) => (value ? doc.media.get(value.slice(6)) : null);
  const source = () => (takes("video") ? medium(doc.request.video) : null);
  const startOf = () => Number(/^(\d+)f$/.exec(doc.request.start ?? "")?.[1] ?? 0);
  const endOf = () => Number(/^(\d+)f$/.exec(doc.request.end ?? "")?.[1] ?? source()?.frames ?? 0);
  const fps = () => plan?.fps ?? doc.request.fps ?? source()?.fps ?? defaultsOf(model()).fps ?? 8;
  const count = () =>
    Math.max(
      1,
      plan?.frames ??
        doc.request.frames ??
        (source() ? Math.max(1, endOf() - startOf()) : (defaultsOf(model()).frames ?? 16)),
    );
  const size = () => {
    const own = defaultsOf(model());
    return [
      plan?.width ?? doc.request.width ?? own.width ?? 512,
      plan?.height ?? doc.request.height ?? own.height ?? 512,
    ];
  };

  /** The images that the clip goes through, by frame: keyframes, and the first and last image. */
  function given() {
    const { keyframes = {}, image, last_image: last } = doc.request;
    const found = takes("keyframes") ? { ...keyframes } : {};
    if (image && takes("image")) found[0] ??= image;
    if (last && takes("last_image")) found[count() - 1] ??= last;
    return found;
  }
  /** Take the image at a frame out of a request. */
  function takeGiven(request, at) {
    const value = given()[at];
    if (request.keyframes?.[at]) delete request.keyframes[at];
    else if (request.image === value) delete request.image;
    else delete request.last_image;
    return value;
  }
  const hasTrack = (name) =>
    name === "clip"
      ? Boolean(source())
      : name === "keyframes"
        ? takes("keyframes") || verb() === "generate" || (verb() === "interpolate" && !doc.request.video)
        : takes(TRACKS[name]);

  const images = pictures({ given, doc, source, startOf, fps, count, redraw: () => redraw() });
  const masks = masksOf({
    doc,
    defined,
    size,
    redraw: () => redraw(),
    ready: () => takes("masks") && Boolean(source()),
  });
  const canPaint = () => takes("masks") && Boolean(source());
  const big = stage({
    frame: () => frame,
    fit: () => doc.request.fit ?? "crop",
    picture: images.picture,
    onion: images.onion,
    live: images.live,
    mask: (at) => (canPaint() && images.showing() === "inputs" ? masks.at(at) : null),
    begin: masks.begin,
    canPaint: () => canPaint() && images.showing() === "inputs",
    async commit(at, canvas) {
      const had = Boolean(doc.request.region);
      await masks.commit(at, canvas);
      if (had) toast("The masks take the place of the region.", { action: { label: "Undo", run: doc.undo } });
    },
    region: () => (takes("region") && images.showing() === "inputs" ? (doc.request.region ?? null) : null),
    setRegion: (box, merge) =>
      doc.change((request) => ((request.region = box), delete request.mask, delete request.masks), { merge }),
    empty: emptyWords,
  });
  const rail = tracks({
    frame: () => frame,
    count,
    fps,
    go,
    lanes: () => Object.keys(TRACKS).filter(hasTrack),
    keyframes: () => Object.entries(given()).map(([at, value]) => [Number(at), value.slice(6)]),
    masks: () => Object.keys(doc.request.masks ?? {}).map(Number),
    spans: () => Object.entries(doc.request.prompt_spans ?? {}),
    prompt: () => Boolean(doc.request.prompt),
    selected: () => selected,
    clipLabel: () => "Clip",
    thumb: images.thumb,
    imageOf: images.into,
    moveKeyframe,
    removeKeyframe: (at) => doc.change((request) => takeGiven(request, at)),
    moveMask: (from, to) => moveIn("masks", from, to),
    removeMask: (at) => removeIn("masks", at),
    dropFile: takeFile,
    chooseImage: () => choose("image/*", (file) => takeFile(file, frame)),
    addSpan,
    setSpan,
    removeSpan,
    select: (key) => ((selected = key), details.draw()),
    edit: (key) => ((selected = key), details.draw(), details.focus()),
  });
  const details = inspector({
    doc,
    selected: () => selected,
    count,
    setSpan,
    removeSpan,
    takes,
    source,
    choose: chooseSource,
  });
  const side = sidePanel({ doc, defined, rows, model, setVerb, switchable: true });
  const job = jobPanel({ doc, defined, images, verb, forgetPlan: () => (plan = null), needed });
  const bar = transport({
    frame: () => frame,
    count,
    fps,
    go,
    images,
    canPaint,
    stage: big,
    doc,
    masks,
    takes,
    paint: readyToPaint,
    signal,
  });
  const files = h("input", { type: "file", class: "visually-hidden", tabIndex: -1, "aria-hidden": "true" });
  let chosen = null;
  files.addEventListener("change", () => {
    if (files.files[0]) chosen?.(files.files[0]);
    files.value = "";
  });

  const undo = iconButton("undo", "Undo (Ctrl+Z)", doc.undo);
  const redo = iconButton("redo", "Redo (Ctrl+Shift+Z)", doc.redo);
  const head = h(
    "div",
    { class: "timeline-head" },
    h("h1", {}, "Timeline"),
    undo,
    redo,
    h("span", { class: "spacer" }),
    h(
      "button",
      { type: "button", class: "quiet small", onclick: clear },
      icon("file"),
      h("span", { class: "narrow-hidden" }, "New"),
    ),
    h(
      "button",
      { type: "button", class: "quiet small", onclick: () => choose(`${SUFFIX},application/json`, openFile) },
      icon("folder"),
      h("span", { class: "narrow-hidden" }, "Open"),
    ),
    h(
      "button",
      { type: "button", class: "quiet small", onclick: save },
      icon("down"),
      h("span", { class: "narrow-hidden" }, "Save"),
    ),
    h(
      "button",
      { type: "button", class: "quiet small", onclick: chooseSource },
      icon("image"),
      h("span", { class: "narrow-hidden" }, "Add a clip or image"),
    ),
  );
  const element = h(
    "div",
    { class: "timeline" },
    head,
    h(
      "div",
      { class: "timeline-main" },
      h("div", { class: "timeline-look" }, big.element, bar.element),
      h("div", { class: "timeline-side panel" }, side.element, job.element),
    ),
    rail.element,
    details.element,
    files,
  );

  // ------------------------------------------------------------------------------- changes

  function changed(what) {
    if (what === "all") plan = null; // another verb or clip has another rate and size
    const before = plan;
    if (what === "all") side.draw();
    if (selected && !(selected in (doc.request.prompt_spans ?? {}))) selected = null;
    undo.disabled = !doc.canUndo();
    redo.disabled = !doc.canRedo();
    images.refresh();
    masks.refresh();
    askPlan();
    if (before) plan = { ...before, frames: doc.request.frames ?? (source() ? undefined : before.frames) };
    redraw();
    details.draw();
    bar.draw();
  }
  function redraw() {
    frame = Math.min(frame, count() - 1);
    big.size(...size());
    big.draw();
    rail.draw();
    bar.draw();
  }
  function go(to) {
    frame = Math.min(count() - 1, Math.max(0, to));
    images.want(frame);
    doc.remember({ frame });
    redraw();
  }
  async function askPlan() {
    queued += 1;
    const mine = queued;
    await new Promise((resolve) => setTimeout(resolve, 350));
    if (mine !== queued || signal.aborted) return;
    const missing = needed();
    job.say(missing);
    if (missing && missing !== NO_PROMPT && missing !== EMPTY_SPAN) return;
    try {
      const request = missing ? { ...doc.request, prompt: "clip", prompt_spans: undefined } : doc.request;
      const found = await planOf({ document: await doc.forService(defined, request) });
      if (mine !== queued || signal.aborted) return;
      plan = found;
      if (!missing) job.plan(found);
      images.refresh();
      redraw();
    } catch (error) {
      if (mine === queued && !missing && error.name !== "AbortError") job.say(sentence(error.message), true);
    }
  }
  const NO_PROMPT = "Describe the clip.";
  const EMPTY_SPAN = "Describe the span that is empty, or remove it.";
  function needed() {
    const { request } = doc;
    if (takes("video") && !request.video && !(verb() === "interpolate" && request.image))
      return `Add a clip to ${verb()}.`;
    if (verb() === "inpaint" && !request.region && !request.masks && !request.mask)
      return "Paint a mask on a frame, or draw a region.";
    if (verb() === "animate" && !request.keyframes && !request.image && !request.image_model && !request.last_image)
      return "Add an image as a keyframe.";
    const spans = takes("prompt_spans") ? Object.values(request.prompt_spans ?? {}) : [];
    if (spans.some((text) => !text.trim())) return EMPTY_SPAN;
    const silent = ["interpolate", "upscale"].includes(verb()) || model()?.defaults?.takes_prompt === false;
    return silent || request.prompt || request.prompt_spans ? "" : NO_PROMPT;
  }
  function emptyWords() {
    if (takes("video") && !source()) return "Drop a clip here.";
    if (images.showing() === "result") return "No frame yet.";
    if (takes("keyframes")) return "Drop an image here: it becomes a keyframe of this frame.";
    return "This frame is generated. Drop an image or a clip to start from it.";
  }
  function setVerb(name, merge = null) {
    doc.change((request) => (request.task = name), { what: "all", merge });
    announce(sentence(name));
  }
  function moveKeyframe(from, to) {
    doc.change((request) => {
      const value = takeGiven(request, from);
      if (takes("keyframes")) request.keyframes = { ...request.keyframes, [to]: value };
      else request[to < count() / 2 ? "image" : "last_image"] = value;
    });
  }
  const moveIn = (name, from, to) =>
    doc.change((request) => {
      const { [from]: value, ...others } = request[name];
      request[name] = { ...others, [to]: value };
    });
  const removeIn = (name, at) => doc.change((request) => delete request[name][at]);
  function addSpan(at) {
    const to = Math.min(count() - 1, at + Math.max(1, Math.round(count() / 4)) - 1);
    selected = spanKey(at, to);
    doc.change((request) => (request.prompt_spans = withSpan(request.prompt_spans, null, [at, to], "")));
    details.focus();
  }
  function setSpan(old, next, text = doc.request.prompt_spans[old], merge = null) {
    selected = spanKey(...next);
    doc.change((request) => (request.prompt_spans = withSpan(request.prompt_spans, old, next, text)), { merge });
  }
  function removeSpan(key) {
    selected = null;
    doc.change((request) => (request.prompt_spans = withSpan(request.prompt_spans, key, null)));
  }

  // --------------------------------------------------------------------------------- files

  function choose(accept, take) {
    files.accept = accept;
    chosen = take;
    files.click();
  }
  function chooseSource() {
    choose("image/*,video/*,.mkv,.mov,.webm,.gif", (file) => takeFile(file, frame));
  }
  async function takeFile(file, at = frame) {
    if (file.name.endsWith(".json")) return openFile(file);
    if (!isMedia(file))
      return toast(`${file.name} is no image or clip; expected a file such as .png, .jpg, .gif or .mp4`, {
        error: true,
      });
    const done = toast(`Reading ${file.name}…`, { stays: 600_000 });
    try {
      const key = doc.add(file, file.name || "pasted.png");
      await doc.asset(key);
      useMedium(key, at);
    } catch (error) {
      failed(error);
    }
    done();
    return undefined;
  }
  function useMedium(key, at) {
    const clip = doc.media.get(key).kind === "video";
    const before = verb();
    doc.change(
      (request) => {
        if (clip) {
          Object.assign(request, { video: `media:${key}`, start: null, end: null, masks: null, mask: null });
          if (!takes("video")) request.task = "inpaint";
        } else {
          if (verb() === "interpolate" && !request.video) {
            request[at < count() / 2 ? "image" : "last_image"] = `media:${key}`;
            return;
          }
          if (!takes("keyframes")) request.task = "animate";
          request.keyframes = { ...request.keyframes, [at]: `media:${key}` };
        }
      },
      { what: "all" },
    );
    images.show("inputs");
    if (before !== verb()) toast(`Now: ${verb()}.`, { action: { label: "Undo", run: doc.undo } });
    else announce(clip ? "The clip was added" : `Keyframe at frame ${at + 1}`);
  }
  async function openFile(file) {
    try {
      if (file.size > 2 ** 29) throw new Error(`${file.name} is too large for a document`);
      await doc.load(JSON.parse(await file.text()));
      toast(`Opened ${file.name}.`, { action: { label: "Undo", run: doc.undo } });
    } catch (error) {
      toast(
        error instanceof SyntaxError
          ? `${file.name} is no document of Kinema (it is not JSON)`
          : sentence(error.message),
        { error: true },
      );
    }
  }
  async function openVideo(id) {
    try {
      await doc.load(await call("GET", `/v1/videos/${encodeURIComponent(id)}/document`));
      history.replaceState(null, "", "#timeline");
      images.result({ id, ...(await call("GET", `/v1/videos/${id}`)).settled });
    } catch (error) {
      failed(error);
    }
  }
  async function save() {
    try {
      const text = await doc.text(defined);
      const name =
        (doc.request.prompt || "clip")
          .toLowerCase()
          .replace(/[^\p{L}\p{N}]+/gu, "-")
          .replace(/^-|-$/g, "")
          .slice(0, 60) || "clip";
      const link = h("a", {
        href: URL.createObjectURL(new Blob([text], { type: "application/json" })),
        download: `${name}${SUFFIX}`,
      });
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
    } catch (error) {
      failed(error);
    }
  }
  function clear() {
    doc.clear();
    images.result(null);
    toast("A new document.", { action: { label: "Undo", run: doc.undo } });
  }
  /** Choose the verb that masks are for, if the document has a clip. */
  function readyToPaint() {
    if (canPaint()) return true;
    if (!doc.request.video) {
      toast("Masks are painted over a clip: add one first.");
      return false;
    }
    setVerb("inpaint");
    return true;
  }

  // ---------------------------------------------------------------------------------- keys

  dropAnywhere(element, (file) => takeFile(file), signal);
  addEventListener(
    "keydown",
    (event) => {
      const key = event.key.toLowerCase();
      const control = event.ctrlKey || event.metaKey;
      const typing = event.target.closest?.(
        "input:not([type=range], [type=checkbox], [type=radio]), textarea, select, dialog",
      );
      if (control && key === "enter") job.generate();
      else if (typing) return;
      else if (control && key === "z") (event.shiftKey ? doc.redo : doc.undo)();
      else if (control && key === "y") doc.redo();
      else if (control && key === "s") save();
      else if (control || event.altKey || !bar.key(event, key)) return;
      event.preventDefault();
    },
    { signal },
  );
  return {
    element,
    changed,
    openVideo,
    destroy() {
      images.destroy();
      job.destroy();
      bar.destroy();
    },
  };
}
