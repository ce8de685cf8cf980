// Views by hash: "#gallery/video_1?q=red" shows the view "gallery" with ["video_1"] and {q: "red"}.

/** The route of the address now. */
export function route() {
  const [path, query = ""] = location.hash.replace(/^#\/?/, "").split("?");
  const [view, ...rest] = path.split("/").map(decode);
  return { view, rest, query: Object.fromEntries(new URLSearchParams(query)) };
}

function decode(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

/** Go to a view. */
export function go(view, ...rest) {
  location.hash = ["#" + view, ...rest.map(encodeURIComponent)].join("/");
}

/** Call ``show(route)`` now and whenever the address changes. */
export function start(show) {
  addEventListener("hashchange", () => show(route()));
  show(route());
}
