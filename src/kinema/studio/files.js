// Files as values of fields: chosen, dropped or pasted; uploaded at once, with progress; clips trimmed in place.

import { call, upload } from "./api.js";
import { fill, h, icon, iconButton, newId } from "./dom.js";
import { bytes, counted } from "./format.js";
import { thumbnailOf } from "./filethumb.js";
import { rowsControl } from "./rows.js";
import { trimmer } from "./trim.js";

const ACCEPT = "image/*,video/*,.mkv,.mov,.webm,.gif,.webp,.apng";
const MEDIA = /^(image|video)\//;
const SUFFIX = /\.(png|jpe?g|webp|gif|bmp|tiff?|apng|avif|mp4|mov|mkv|webm|avi|m4v|mpe?g|ts)$/i;

/** Whether a dropped file may be an image or clip. */
export const isMedia = (file) => MEDIA.test(file.type) || SUFFIX.test(file.name);

/** The value of an asset: what the form remembers of it. */
export const valueOf = (asset) => ({
  id: asset.id,
  name: asset.name,
  kind: asset.kind,
  frames: asset.frames,
  fps: asset.fps,
  width: asset.width,
  height: asset.height,
  bytes: asset.bytes,
});

/** Upload a file with a progress bar in ``place``: the value, or raises. */
export async function send(file, place) {
  const stop = new AbortController();
  const bar = h("progress", { max: 1, value: 0, "aria-label": `Uploading ${file.name}` });
  const words = h("span", { class: "muted" }, "Uploading");
  fill(
    place,
    h(
      "div",
      { class: "upload" },
      h("span", { class: "file-name" }, file.name || "pasted image"),
      bar,
      words,
      iconButton("close", "Cancel the upload", () => stop.abort()),
    ),
  );
  const asset = await upload(
    file,
    (share) => {
      bar.value = share;
      words.textContent = share < 1 ? `${Math.round(share * 100)}% of ${bytes(file.size)}` : "Checking the file";
    },
    stop.signal,
  );
  return valueOf(asset);
}

/** The control of one file. It takes drops, a file dialog, and (through `takePasted`) the clipboard. */
export function fileControl(field, context) {
  let value = null;
  let trim = null;
  const id = newId("file");
  const input = h("input", {
    type: "file",
    id,
    accept: ACCEPT,
    class: "visually-hidden",
    onchange: () => input.files[0] && take(input.files[0]),
  });
  const place = h("div", { class: "file-place" });
  const element = h("div", { class: "file", dataset: { field: field.name } }, input, place);

  async function take(file) {
    fail("");
    if (!isMedia(file))
      return fail(`${file.name} is no image or clip; expected a file such as .png, .jpg, .gif or .mp4`);
    try {
      write(await send(file, place));
      context.change(value);
      context.taken?.(field, value);
    } catch (error) {
      write(value);
      if (error.name !== "AbortError") fail(error.message);
    }
    input.value = "";
    return undefined;
  }
  const fail = (text) => context.fail?.(text);
  const choose = () => input.click();
  const label = () =>
    h(
      "button",
      { type: "button", class: "drop", onclick: choose, "aria-describedby": context.describedBy },
      icon("image"),
      h("span", {}, h("strong", {}, `Choose ${field.label.toLowerCase()}`), h("br"), "or drop or paste it here"),
    );

  function write(next) {
    trim?.destroy();
    trim = null;
    value = next ?? null;
    if (!value) return void fill(place, label());
    const facts = [
      value.width && `${value.width}×${value.height}`,
      value.frames > 1 && counted(value.frames, "frame"),
      value.fps && value.frames > 1 && `${Number(value.fps.toFixed(2))} fps`,
    ]
      .filter(Boolean)
      .join(" · ");
    const card = h(
      "div",
      { class: "file-card" },
      thumbnailOf(value),
      h(
        "div",
        { class: "file-words" },
        h("span", { class: "file-name", title: value.name }, value.name),
        h("span", { class: "muted" }, facts),
      ),
      h("button", { type: "button", class: "quiet small", onclick: choose }, "Replace"),
      iconButton(
        "close",
        `Remove ${field.label.toLowerCase()}`,
        () => (write(null), context.change(null), input.focus()),
      ),
    );
    const ends = context.trimEnds?.(field) ?? [];
    fill(place, card);
    if (value.frames > 1 && ends.length) {
      trim = trimmer(value, ends, (cut) => context.trimmed(cut, ends));
      trim.write(context.values().start, ends.includes("end") ? context.values().end : null);
      place.append(trim.element);
    }
    if (!value.frames && value.id.startsWith("asset-")) complete(value);
    return undefined;
  }
  /** Ask for what a reused order does not say of its file: its name and size. */
  async function complete(known) {
    const asset = await call("GET", `/v1/assets/${known.id}`).catch(() => null);
    if (asset && value === known) {
      write(valueOf(asset));
      context.change(value);
    }
  }
  for (const kind of ["dragenter", "dragover"]) {
    element.addEventListener(kind, (event) => {
      if (!event.dataTransfer.types.includes("Files")) return;
      event.preventDefault();
      element.classList.add("over");
    });
  }
  element.addEventListener(
    "dragleave",
    (event) => element.contains(event.relatedTarget) || element.classList.remove("over"),
  );
  element.addEventListener("drop", (event) => {
    element.classList.remove("over");
    if (!event.dataTransfer.files.length) return;
    event.preventDefault();
    event.stopPropagation();
    dispatchEvent(new Event("kinema:dropped"));
    take(event.dataTransfer.files[0]);
  });
  write(null);
  return { element, input, write, take, retrim: () => trim?.write(context.values().start, context.values().end) };
}

/** Images at frames: rows of a frame number and a file. */
export function framesControl(field, context) {
  const parts = (row, changed) => {
    const frame = h("input", {
      type: "number",
      min: 0,
      step: 1,
      class: "narrow",
      "aria-label": "Frame",
      placeholder: "frame",
      value: row.frame ?? "",
      oninput: () => ((row.frame = frame.value === "" ? null : Number(frame.value)), changed()),
    });
    const file = fileControl(
      { ...field, name: `${field.name}-file`, label: "Image" },
      { ...context, trimEnds: () => [], taken: null, change: (value) => ((row.file = value), changed()) },
    );
    file.write(row.file ?? null);
    return [frame, file.element];
  };
  return rowsControl(field, context, () => ({ frame: null, file: null }), parts, "Add a keyframe");
}
