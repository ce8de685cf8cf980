// SHA-256 of bytes. Browsers have it on secure pages alone, and a service in the local network need not be one.

const CONSTANTS = new Uint32Array(64);
const START = new Uint32Array(8);

(function primes() {
  let found = 0;
  for (let n = 2; found < 64; n += 1) {
    let prime = true;
    for (let by = 2; by * by <= n; by += 1) if (n % by === 0) prime = false;
    if (!prime) continue;
    if (found < 8) START[found] = (Math.sqrt(n) % 1) * 2 ** 32;
    CONSTANTS[found] = (Math.cbrt(n) % 1) * 2 ** 32;
    found += 1;
  }
})();

const hex = (bytes) => [...bytes].map((each) => each.toString(16).padStart(2, "0")).join("");

/** The hash of an ArrayBuffer as 64 hexadecimal digits. */
export async function sha256(buffer) {
  if (globalThis.crypto?.subtle) return hex(new Uint8Array(await crypto.subtle.digest("SHA-256", buffer)));
  return sha256Here(buffer);
}

/** The same without the browser's help. */
export function sha256Here(buffer) {
  const bytes = new Uint8Array(buffer);
  const padded = new Uint8Array((((bytes.length + 8) >> 6) + 1) << 6);
  padded.set(bytes);
  padded[bytes.length] = 0x80;
  const view = new DataView(padded.buffer);
  view.setUint32(padded.length - 8, Math.floor(bytes.length / 2 ** 29));
  view.setUint32(padded.length - 4, bytes.length << 3);
  const state = START.slice();
  const words = new Uint32Array(64);
  for (let at = 0; at < padded.length; at += 64) block(state, words, view, at);
  const out = new DataView(new ArrayBuffer(32));
  state.forEach((each, index) => out.setUint32(4 * index, each));
  return hex(new Uint8Array(out.buffer));
}

const turn = (x, by) => (x >>> by) | (x << (32 - by));

function block(state, w, view, at) {
  for (let t = 0; t < 16; t += 1) w[t] = view.getUint32(at + 4 * t);
  for (let t = 16; t < 64; t += 1) {
    const low = turn(w[t - 15], 7) ^ turn(w[t - 15], 18) ^ (w[t - 15] >>> 3);
    const high = turn(w[t - 2], 17) ^ turn(w[t - 2], 19) ^ (w[t - 2] >>> 10);
    w[t] = w[t - 16] + low + w[t - 7] + high;
  }
  let [a, b, c, d, e, f, g, h] = state;
  for (let t = 0; t < 64; t += 1) {
    const first = (h + (turn(e, 6) ^ turn(e, 11) ^ turn(e, 25)) + ((e & f) ^ (~e & g)) + CONSTANTS[t] + w[t]) | 0;
    const second = ((turn(a, 2) ^ turn(a, 13) ^ turn(a, 22)) + ((a & b) ^ (a & c) ^ (b & c))) | 0;
    [h, g, f, e, d, c, b, a] = [g, f, e, (d + first) | 0, c, b, a, (first + second) | 0];
  }
  [a, b, c, d, e, f, g, h].forEach((each, index) => (state[index] += each));
}
