// Spans of frames as requests write them: "8" or "8-15".

/** The first and last frame of a span of a clip of ``count`` frames; a single frame holds to the next one or the end. */
export function parseSpan(key, count) {
  const found = /^(\d+)(?:-(\d+))?$/.exec(key);
  if (!found) return [0, count - 1];
  const first = Math.min(Number(found[1]), count - 1);
  return [first, found[2] === undefined ? first : Math.min(Math.max(first, Number(found[2])), count - 1)];
}

export const spanKey = (first, last) => (first === last ? `${first}` : `${first}-${last}`);

/** A span after a drag by ``by`` frames: of one end, or of the whole. */
export function draggedSpan({ first, last, end }, by, count) {
  const limit = (value) => Math.min(count - 1, Math.max(0, value));
  if (end === "first") return [Math.min(limit(first + by), last), last];
  if (end === "last") return [first, Math.max(limit(last + by), first)];
  const move = Math.min(Math.max(by, -first), count - 1 - last);
  return [first + move, last + move];
}

/** Rename a key of a table, keeping it sorted by first frame; null removes it. Overlapping spans are cut. */
export function withSpan(table, old, next, text) {
  const entries = Object.entries(table ?? {}).filter(([key]) => key !== old);
  if (!next) return sorted(entries);
  const [first, last] = next;
  const cut = entries.flatMap(([key, each]) => {
    const [from, to] = parseSpan(key, Infinity);
    if (to < first || from > last) return [[key, each]];
    const parts = [];
    if (from < first) parts.push([spanKey(from, first - 1), each]);
    if (to > last) parts.push([spanKey(last + 1, to), each]);
    return parts;
  });
  return sorted([...cut, [spanKey(first, last), text]]);
}

const sorted = (entries) => Object.fromEntries(entries.sort(([a], [b]) => parseInt(a, 10) - parseInt(b, 10)));
