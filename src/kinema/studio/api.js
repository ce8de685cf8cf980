// The service over HTTP: JSON calls, uploads with progress, and media, with the token if the service has one.

const KEY = "kinema.token";
let token = readToken();

function readToken() {
  try {
    return sessionStorage.getItem(KEY);
  } catch {
    return null;
  }
}

/** A refusal of the service; ``param`` names the field that caused it, if one did. */
export class ApiError extends Error {
  constructor(status, message, code = null, param = null) {
    super(message);
    this.status = status;
    this.code = code;
    this.param = param;
  }
}

export function setToken(value) {
  token = value || null;
  try {
    if (token) sessionStorage.setItem(KEY, token);
    else sessionStorage.removeItem(KEY);
  } catch {
    // kept in memory alone
  }
}

/** Headers of every request. */
export function headers() {
  return token ? { Authorization: `Bearer ${token}` } : {};
}

/** Fetch a path of the service; raises ApiError for refusals, and asks for a token where one is missing. */
export async function open(path, options = {}) {
  let response;
  try {
    response = await fetch(path, { ...options, headers: { ...headers(), ...options.headers } });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, "the service does not answer; check that kinema serve is running", "unreachable");
  }
  if (response.ok) return response;
  throw await refusal(response.status, () => response.json());
}

async function refusal(status, read) {
  let error = {};
  try {
    error = (await read()).error ?? {};
  } catch {
    // no JSON: the status alone
  }
  if (status === 401) dispatchEvent(new CustomEvent("kinema:token"));
  return new ApiError(status, error.message ?? `the service answered ${status}`, error.code, error.param);
}

/** GET, POST or DELETE with JSON both ways. */
export async function call(method, path, body, signal) {
  const options = { method, signal, keepalive: method === "DELETE" };
  if (body !== undefined) {
    options.body = JSON.stringify(body);
    options.headers = { "Content-Type": "application/json" };
  }
  const response = await open(path, options);
  return response.status === 204 ? null : response.json();
}

/** What an order would give; raises ApiError if it is refused. */
export const planOf = (order, signal) => draft("/v1/videos/plan", order, signal);
/** The masks of all frames of an inpainting; raises ApiError if it is refused. */
export const masksFor = (order) => draft("/v1/masks", order);

/** POST an order that may be half typed: a refusal is an answer by 200, so the browser's console reports nothing. */
async function draft(path, order, signal) {
  const found = await call("POST", `${path}?refusals=true`, order, signal);
  if (found.error) throw new ApiError(400, found.error.message, found.error.code, found.error.param);
  return found;
}

/** Send a file to /v1/assets; ``onProgress`` gets the share sent, 0 to 1. Fetch cannot report it, so this is XHR. */
export function upload(file, onProgress, signal) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    const form = new FormData();
    form.append("file", file, file.name || "pasted.png");
    request.open("POST", "/v1/assets");
    for (const [name, value] of Object.entries(headers())) request.setRequestHeader(name, value);
    request.upload.addEventListener("progress", (event) => {
      if (event.lengthComputable) onProgress(event.loaded / event.total);
    });
    request.addEventListener("load", async () => {
      if (request.status < 300) resolve(JSON.parse(request.responseText));
      else reject(await refusal(request.status, () => JSON.parse(request.responseText)));
    });
    request.addEventListener("error", () => reject(new ApiError(0, "the upload was interrupted; try again")));
    request.addEventListener("abort", () => reject(new DOMException("cancelled", "AbortError")));
    signal?.addEventListener("abort", () => request.abort());
    request.send(form);
  });
}

const blobs = new Map();
const MOST_BLOBS = 60;

/** An address for <img> and <video>. Elements send no token, so with one the file is fetched into a blob (kept: the last 60). */
export async function media(path) {
  if (!token) return path;
  let url = blobs.get(path);
  if (!url) {
    url = URL.createObjectURL(await (await open(path)).blob());
    for (const [oldest, gone] of blobs) {
      if (blobs.size < MOST_BLOBS) break;
      blobs.delete(oldest);
      URL.revokeObjectURL(gone);
    }
  } else blobs.delete(path);
  blobs.set(path, url);
  return url;
}

/** Save a file of the service under a name. */
export async function download(path, name) {
  const response = await open(path);
  const url = URL.createObjectURL(await response.blob());
  const link = document.createElement("a");
  link.href = url;
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

/** A file of a job; ``clip`` is one of a batch. */
export const contentPath = (id, variant = "video", clip = 0) =>
  `/v1/videos/${id}/content?variant=${variant}${clip ? `&clip=${clip}` : ""}`;
export const assetPath = (id) => `/v1/assets/${id}/content`;
