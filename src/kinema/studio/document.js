// The document that the timeline edits: a request with its media, undo and redo, kept over reloads; see docs/document.md.

import { call, open, upload } from "./api.js";
import { dropKept, keep, kept, keptKeys } from "./idb.js";
import { fieldsOf } from "./order.js";
import { sha256 } from "./sha256.js";

const VERSION = 1;
const STATE = "document";
const MEDIUM = "medium:";
const MOST = 100;
const LARGEST = 2 ** 28;
const FIELDS_OF_TRACKS = ["image", "last_image", "video", "mask", "masks", "keyframes", "region", "prompt_spans"];

/** Fields that the tracks edit; the form has all others. */
export const OWNED = new Set([...FIELDS_OF_TRACKS, "start", "end", "control", "ip_image"]);
const FILES = ["image", "last_image", "video", "mask"];
const BY_FRAME = ["keyframes", "masks"];

const blank = () => ({ model: null, loras: {}, add: {}, request: { task: "generate" }, editor: {} });

/** The names of media that a request uses. */
export function usedIn(value, found = new Set()) {
  if (typeof value === "string") {
    if (value.startsWith("media:")) found.add(value.slice(6));
  } else if (value && typeof value === "object") Object.values(value).forEach((each) => usedIn(each, found));
  return found;
}

/** The document of this page: one, read from the browser's database. ``changed(what)`` is called after each change. */
export async function openDocument(changed) {
  const media = new Map();
  let state = blank();
  let past = [];
  let future = [];
  let timer = 0;
  const saved = await kept(STATE);
  if (saved?.request) {
    state = { ...blank(), ...saved };
    for (const name of usedIn(state.request)) {
      const medium = await kept(MEDIUM + name);
      if (medium) media.set(name, medium);
    }
    prune(state.request, media);
  }

  const snapshot = () => {
    const { model, loras, add, request } = state;
    return JSON.stringify({ model, loras, add, request });
  };
  function write() {
    clearTimeout(timer);
    timer = setTimeout(store, 250);
  }
  const store = () => keep(STATE, structuredClone(state));

  /** Change the request through ``edit(request)``, as one step that can be undone. ``merge`` joins it to the last step. */
  function change(edit, { what = "request", merge = null } = {}) {
    const before = snapshot();
    edit(state.request, state);
    tidy(state.request);
    if (snapshot() === before) return;
    const last = past.at(-1);
    if (!merge || last?.merge !== merge) past = [...past.slice(-MOST), { text: before, merge }];
    future = [];
    write();
    changed(what);
  }
  function step(from, to) {
    const found = from.pop();
    if (!found) return;
    to.push({ text: snapshot(), merge: null });
    state = { ...state, ...JSON.parse(found.text) };
    write();
    changed("all");
  }

  /** Take a file into the document; returns the name of its medium. */
  function add(blob, name, facts = {}) {
    let number = media.size + 1;
    while (media.has(`m${number}`)) number += 1;
    const key = `m${number}`;
    media.set(key, { name, blob, kind: facts.kind ?? (blob.type.startsWith("video/") ? "video" : "image"), ...facts });
    keep(MEDIUM + key, media.get(key));
    return key;
  }

  // --------------------------------------------------------------------------- to the service

  const waiting = new Map();
  /** The asset of a medium: uploaded once, and again if the service has forgotten it. */
  async function asset(key) {
    const medium = media.get(key);
    if (!medium) throw new Error(`the document has no medium ${key}`);
    if (medium.id) {
      const known = await call(
        "GET",
        medium.id.startsWith("video_") ? `/v1/videos/${medium.id}` : `/v1/assets/${medium.id}`,
      ).catch(() => null);
      if (known) return medium.id;
      if (!medium.blob) throw new Error(`${medium.name} is not there any more; choose it again`);
    }
    if (!waiting.has(key)) {
      const file = new File([medium.blob], medium.name, { type: medium.blob.type });
      waiting.set(
        key,
        upload(file, () => {}).finally(() => waiting.delete(key)),
      );
    }
    const found = await waiting.get(key);
    const { id, kind, frames, fps, width, height } = found;
    media.set(key, { ...medium, id, kind, frames, fps, width, height });
    keep(MEDIUM + key, media.get(key));
    return id;
  }

  /** The document, or another request in its place, as the service takes it: the fields of its verb, its media uploaded. */
  async function forService(definitions, whole = state.request) {
    const request = ofVerb(definitions, whole);
    const table = { kinema_document: VERSION, ...named(state), request, media: {} };
    for (const key of usedIn(request))
      table.media[key] = { name: media.get(key)?.name ?? key, asset: await asset(key) };
    return table;
  }

  // ----------------------------------------------------------------------------------- files

  /** The document's file: JSON with all media in it. */
  async function text(definitions) {
    const request = ofVerb(definitions, state.request);
    const table = { kinema_document: VERSION, ...named(state), request, media: {} };
    let total = 0;
    for (const key of usedIn(request)) {
      const medium = media.get(key);
      const blob = medium.blob ?? (await bytesOf(medium));
      total += blob.size;
      if (total > LARGEST) throw new Error("the media have more than 256 MiB, which a document cannot hold");
      const buffer = await blob.arrayBuffer();
      table.media[key] = { name: medium.name, sha256: await sha256(buffer), data: await base64(blob) };
    }
    return JSON.stringify({ ...table, editor: state.editor }, null, 1);
  }

  /** Replace the document by a parsed one, which can be undone. Raises for anything else. */
  async function load(table) {
    if (table?.kinema_document !== VERSION || typeof table.request !== "object")
      throw new Error("this is not a document of Kinema that this page can read");
    const names = new Map();
    for (const [key, entry] of Object.entries(table.media ?? {})) {
      if (entry.asset)
        names.set(
          key,
          add(new Blob([]), `${entry.name}`, { blob: null, id: `${entry.asset}`, ...(await factsOf(entry.asset)) }),
        );
      else if (typeof entry.data === "string") {
        const blob = fromBase64(entry.data, `${entry.name}`);
        if (entry.sha256 !== (await sha256(await blob.arrayBuffer()))) throw new Error(`the medium ${key} is damaged`);
        names.set(key, add(blob, `${entry.name}`));
      } else throw new Error(`the medium ${key} is a file next to the document; save the document with its media`);
    }
    const request = renamed(table.request, names);
    change(
      (_, whole) => {
        whole.model = table.model ?? null;
        whole.loras = { ...table.loras };
        whole.add = { ...table.add };
        whole.request = { task: "generate", ...request };
      },
      { what: "all" },
    );
    state.editor = { ...table.editor };
    write();
  }

  return {
    media,
    change,
    add,
    asset,
    forService,
    text,
    load,
    get state() {
      return state;
    },
    get request() {
      return state.request;
    },
    remember(editor) {
      state.editor = { ...state.editor, ...editor };
      write();
    },
    blobOf: async (key) => media.get(key).blob ?? bytesOf(media.get(key)),
    undo: () => step(past, future),
    redo: () => step(future, past),
    canUndo: () => past.length > 0,
    canRedo: () => future.length > 0,
    clear: () => change((_, whole) => Object.assign(whole, { ...blank(), editor: whole.editor }), { what: "all" }),
    flush: store,
  };
}

/** Drop media of the database that the document does not use; at the start, when nothing can be undone. */
export async function sweep(document) {
  const used = usedIn(document.request);
  for (const key of await keptKeys())
    if (`${key}`.startsWith(MEDIUM) && !used.has(key.slice(MEDIUM.length))) dropKept(key);
}

/** The fields of a request that its verb has. */
export function ofVerb(definitions, request) {
  const places = new Set(fieldsOf(definitions, request.task).map((field) => field.place.split(".")[0]));
  const allowed = (name) => name === "task" || places.has(name) || ["height", "width", "size"].includes(name);
  const found = Object.fromEntries(Object.entries(request).filter(([name]) => allowed(name)));
  if (found.masks || found.mask) delete found.region;
  return found;
}

/** The model, LoRAs and add-ons of a document, as far as there are any. */
function named({ model, loras, add }) {
  const parts = Object.entries({ model, loras, add });
  return Object.fromEntries(parts.filter(([, value]) => value && (value === model || Object.keys(value).length)));
}

function tidy(request) {
  for (const name of [...BY_FRAME, "prompt_spans"])
    if (request[name] && !Object.keys(request[name]).length) delete request[name];
  for (const [name, value] of Object.entries(request)) if (value === null || value === undefined) delete request[name];
}

/** Leave out what names a medium that is gone. */
function prune(request, media) {
  const gone = (value) => typeof value === "string" && value.startsWith("media:") && !media.has(value.slice(6));
  for (const name of FILES) if (gone(request[name])) delete request[name];
  for (const name of BY_FRAME)
    for (const [frame, value] of Object.entries(request[name] ?? {})) if (gone(value)) delete request[name][frame];
  tidy(request);
}

function renamed(value, names) {
  if (typeof value === "string" && value.startsWith("media:"))
    return `media:${names.get(value.slice(6)) ?? value.slice(6)}`;
  if (Array.isArray(value)) return value.map((each) => renamed(each, names));
  if (value && typeof value === "object")
    return Object.fromEntries(Object.entries(value).map(([key, each]) => [key, renamed(each, names)]));
  return value;
}

const path = (id) => (id.startsWith("video_") ? `/v1/videos/${id}/content` : `/v1/assets/${id}/content`);
const bytesOf = async (medium) => (await open(path(medium.id))).blob();

async function factsOf(id) {
  if (!`${id}`.startsWith("video_")) {
    const { kind, frames, fps, width, height } = await call("GET", `/v1/assets/${encodeURIComponent(id)}`);
    return { kind, frames, fps, width, height };
  }
  const video = await call("GET", `/v1/videos/${encodeURIComponent(id)}`);
  const { frames, fps, width, height } = { ...video.settled, ...video.result };
  return { kind: "video", frames, fps, width, height };
}

function base64(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result.slice(reader.result.indexOf(",") + 1));
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });
}

const TYPES = { png: "image/png", jpg: "image/jpeg", jpeg: "image/jpeg", webp: "image/webp", gif: "image/gif" };

function fromBase64(text, name) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const suffix = name.split(".").pop().toLowerCase();
  return new Blob([bytes], { type: TYPES[suffix] ?? "video/mp4" });
}
