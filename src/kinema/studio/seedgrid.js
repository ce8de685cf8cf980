// The same request with several seeds, as a grid that fills while they are generated.

import { call, contentPath, media } from "./api.js";
import { fill, h, iconButton } from "./dom.js";
import { isFinal } from "./events.js";
import { subscribe } from "./jobs.js";
import { STATES } from "./screen.js";
import { hasClip, thumbnail } from "./thumb.js";

/** Open the grid of these jobs in ``host``. ``actions``: open(video), like(video), isLiked(id). */
export function seedGrid(host, ids, actions) {
  const cells = h("ul", { class: "seed-cells", "aria-label": "Seeds" });
  const words = h("p", { class: "muted", role: "status" });
  const element = h(
    "dialog",
    { class: "details seeds", "aria-labelledby": "seeds-title" },
    h(
      "div",
      { class: "details-head" },
      h("h2", { id: "seeds-title" }, "Seed grid"),
      words,
      iconButton("close", "Close", () => element.close()),
    ),
    cells,
  );
  const known = new Map();
  const drawn = new Map();
  cells.style.setProperty("--across", Math.ceil(Math.sqrt(ids.length)));

  function cell(video) {
    const place = h("span", { class: "seed-picture" }, thumbnail(video));
    if (hasClip(video)) {
      const clip = h("video", {
        muted: true,
        loop: true,
        playsInline: true,
        autoplay: !matchMedia("(prefers-reduced-motion: reduce)").matches,
        preload: "auto",
        tabIndex: -1,
        "aria-hidden": "true",
        class: (video.settled?.width ?? 999) <= 200 ? "sharp" : "",
      });
      media(contentPath(video.id)).then(
        (url) => (clip.src = url),
        () => {},
      );
      fill(place, clip);
    }
    const seed = video.seed ?? video.settled?.seed;
    return h(
      "li",
      { class: "seed-cell", dataset: { seed } },
      h(
        "button",
        {
          type: "button",
          class: "card-open",
          disabled: !isFinal(video),
          onclick: () => (element.close(), actions.open(video)),
          "aria-label": `Seed ${seed}, ${STATES[video.status]}`,
        },
        place,
        h("span", { class: "muted" }, `seed ${seed}`),
      ),
      isFinal(video) &&
        iconButton(
          "heart",
          `Favourite: seed ${seed}`,
          (event) => (
            actions.like(video),
            event.currentTarget.setAttribute("aria-pressed", `${actions.isLiked(video.id)}`)
          ),
          { "aria-pressed": `${actions.isLiked(video.id)}` },
        ),
    );
  }
  function draw() {
    const rows = ids.map((id) => known.get(id)).filter(Boolean);
    const done = rows.filter(isFinal).length;
    words.textContent = done === rows.length ? `All ${done} are done` : `${done} of ${ids.length} are done`;
    element.dataset.done = done;
    rows.forEach((video, at) => {
      const state = `${video.status} ${isFinal(video) ? "" : video.progress}`;
      if (drawn.get(video.id) === state) return;
      drawn.set(video.id, state);
      const next = cell(video);
      if (cells.children[at]) cells.replaceChild(next, cells.children[at]);
      else cells.append(next);
    });
  }
  const unsubscribe = subscribe(({ videos }) => {
    for (const each of videos) if (ids.includes(each.id)) known.set(each.id, each);
    if (known.size) draw();
  });
  element.addEventListener("close", () => {
    unsubscribe();
    element.remove();
  });
  host.append(element);
  element.showModal();
  Promise.all(ids.filter((id) => !known.has(id)).map((id) => call("GET", `/v1/videos/${id}`).catch(() => null))).then(
    (found) => {
      for (const each of found.filter(Boolean)) if (!known.has(each.id)) known.set(each.id, each);
      draw();
    },
  );
}
