// The view Gallery: all clips as cards, found by words and filters; one in full, two side by side, or a grid of seeds.

import { call } from "./api.js";
import { definitions } from "./catalogue.js";
import { compare } from "./compare.js";
import { detailsDialog } from "./details.js";
import { fill, h, icon } from "./dom.js";
import { isFinal } from "./events.js";
import { card } from "./card.js";
import { counted, sentence } from "./format.js";
import { forget, refresh, subscribe } from "./jobs.js";
import { orderOfVideo } from "./order.js";
import { STATES } from "./screen.js";
import { seedGrid } from "./seedgrid.js";
import { remember, remembered } from "./store.js";
import { hasClip } from "./thumb.js";
import { announce, failed, toast } from "./toast.js";
import { virtualGrid } from "./virtual.js";

const PAGE = 100;
const UNDO = 6000;
const deleted = new Set();

export async function mount(root, { rest = [] } = {}) {
  const defined = await definitions();
  const view = gallery(defined);
  fill(root, view.element);
  view.begin(rest[0]);
  return view.destroy;
}

function gallery(defined) {
  const videos = new Map();
  const favourites = new Set(remembered("favourites", []));
  const filters = { text: "", model: "", verb: "", status: "clip", liked: false, ...remembered("gallery", {}) };
  let first = null;
  let gone = false;

  const search = h("input", {
    type: "search",
    placeholder: "Search prompts, models and seeds",
    "aria-label": "Search",
    value: filters.text,
    oninput: () => narrow({ text: search.value }),
  });
  const models = select("Model", "model");
  const verbs = select("Verb", "verb");
  const states = select("Status", "status");
  const liked = h(
    "button",
    { type: "button", class: "chip", onclick: () => narrow({ liked: !filters.liked }) },
    icon("heart"),
    "Favourites",
  );
  const summary = h("p", { class: "muted", role: "status" });
  const banner = h("div", { class: "offer", hidden: true });
  const grids = h(
    "button",
    { type: "button", class: "quiet small", hidden: true, onclick: () => openGrid() },
    icon("grid"),
    "Last seed grid",
  );
  const empty = h("div", { class: "blank-page", hidden: true });
  const grid = virtualGrid("Clips", (video) =>
    card(video, actions, { liked: favourites.has(video.id), picked: first?.id === video.id }),
  );
  const element = h(
    "div",
    { class: "page gallery" },
    h("div", { class: "page-head" }, h("h1", {}, "Gallery"), summary, grids),
    h("div", { class: "filters", role: "search" }, search, models, verbs, states, liked),
    banner,
    grid.element,
    empty,
  );
  const details = detailsDialog(defined, {
    isLiked: (id) => favourites.has(id),
    like,
    remove,
    compare: pick,
    seeds: startGrid,
    closed: (id) => grid.focus(id),
    next: (id, by) => {
      const shown = listed();
      return shown[shown.findIndex((each) => each.id === id) + by] ?? null;
    },
  });
  element.append(details.element);
  const actions = { open: (video) => details.open(video), like, pick };

  function select(label, name) {
    return h("select", {
      class: "compact",
      "aria-label": label,
      onchange: (event) => narrow({ [name]: event.target.value }),
    });
  }
  function narrow(change) {
    Object.assign(filters, change);
    remember("gallery", { ...filters });
    draw(true);
  }
  function listed() {
    const words = filters.text.toLowerCase().split(/\s+/).filter(Boolean);
    return [...videos.values()]
      .filter((video) => !deleted.has(video.id) && isFinal(video))
      .filter((video) =>
        filters.status === "clip" ? hasClip(video) : !filters.status || video.status === filters.status,
      )
      .filter((video) => !filters.model || video.model === filters.model)
      .filter((video) => !filters.verb || verbOf(video) === filters.verb)
      .filter((video) => !filters.liked || favourites.has(video.id))
      .filter((video) => words.every((word) => haystack(video).includes(word)))
      .sort((a, b) => b.created_at - a.created_at || (a.id < b.id ? 1 : -1));
  }
  const verbOf = (video) => video.verb ?? video.settled?.task ?? "generate";
  const haystack = (video) =>
    `${video.prompt} ${video.model} ${verbOf(video)} seed ${video.seed} ${video.id} ${Object.values(video.request?.prompt_spans ?? {}).join(" ")}`.toLowerCase();

  function options(control, all, rows, value) {
    const wanted = JSON.stringify(rows);
    if (control.dataset.rows !== wanted) {
      control.dataset.rows = wanted;
      fill(
        control,
        h("option", { value: "" }, all),
        rows.map(([each, words]) => h("option", { value: each }, words)),
      );
    }
    control.value = value;
  }
  function draw(top = false) {
    const all = [...videos.values()].filter(isFinal);
    options(
      models,
      "All models",
      [...new Set(all.map((video) => video.model))].sort().map((name) => [name, name]),
      filters.model,
    );
    options(
      verbs,
      "All verbs",
      defined.order.map((name) => [name, sentence(name)]),
      filters.verb,
    );
    options(
      states,
      "All",
      [
        ["clip", "With a clip"],
        ...["completed", "cancelled", "failed", "interrupted"].map((name) => [name, STATES[name]]),
      ],
      filters.status,
    );
    liked.setAttribute("aria-pressed", `${filters.liked}`);
    const shown = listed();
    grid.show(shown, top);
    summary.textContent =
      shown.length === all.length ? counted(shown.length, "clip") : `${shown.length} of ${counted(all.length, "clip")}`;
    empty.hidden = shown.length > 0;
    if (!shown.length)
      fill(
        empty,
        icon("gallery"),
        all.length ? h("p", {}, "No clip is like this.") : h("p", {}, "Clips appear here when they are finished."),
        all.length
          ? h(
              "button",
              {
                type: "button",
                class: "quiet",
                onclick: () => narrow({ text: (search.value = ""), model: "", verb: "", status: "clip", liked: false }),
              },
              "Show all",
            )
          : h("a", { href: "#make", class: "button" }, "Make a clip"),
      );
    grids.hidden = !remembered("seedgrid")?.length;
  }

  // ------------------------------------------------------------------------------ actions

  function like(video) {
    if (favourites.has(video.id)) favourites.delete(video.id);
    else favourites.add(video.id);
    remember("favourites", [...favourites]);
    grid.update(video.id);
    draw();
    announce(favourites.has(video.id) ? "A favourite" : "No favourite any more");
  }
  /** Choose a clip to compare; the second one opens the comparison. */
  function pick(video) {
    if (first?.id === video.id && (first.clip ?? 0) === (video.clip ?? 0)) first = null;
    else if (first) {
      const other = first;
      first = null;
      details.close();
      compare(element, other, video);
    } else {
      first = video;
      details.close();
      announce("Choose the clip to compare it with");
    }
    banner.hidden = !first;
    if (first)
      fill(
        banner,
        h("p", {}, "Choose the clip to compare with ", h("strong", {}, `“${first.prompt || first.id}”`), "."),
        h("button", { type: "button", class: "quiet small", onclick: () => pick(first) }, "Cancel"),
      );
    grid.redraw();
  }
  function remove(video) {
    deleted.add(video.id);
    details.close();
    draw();
    let undone = false;
    const finish = async () => {
      removeEventListener("pagehide", finish);
      if (undone || !deleted.has(video.id)) return;
      undone = true;
      try {
        await call("DELETE", `/v1/videos/${video.id}`);
        videos.delete(video.id);
        forget(video.id);
      } catch (error) {
        deleted.delete(video.id);
        if (!gone) draw();
        failed(error);
      }
    };
    const timer = setTimeout(finish, UNDO);
    addEventListener("pagehide", finish);
    const undo = () => {
      undone = true;
      clearTimeout(timer);
      deleted.delete(video.id);
      if (!gone) draw();
      refresh();
    };
    toast("The clip was deleted.", { action: { label: "Undo", run: undo }, stays: UNDO });
  }
  async function startGrid(video, count) {
    const found = [];
    const seeds = crypto.getRandomValues(new Uint32Array(count));
    try {
      for (const each of seeds)
        found.push((await call("POST", "/v1/videos", orderOfVideo(video, { seed: each }))).id);
    } catch (error) {
      failed(error);
    }
    if (!found.length) return;
    remember("seedgrid", found);
    refresh();
    details.close();
    openGrid();
  }
  const openGrid = () =>
    seedGrid(element, remembered("seedgrid", []), {
      open: (video) => details.open(video),
      like,
      isLiked: (id) => favourites.has(id),
    });

  // ------------------------------------------------------------------------------- loading

  async function load() {
    let after = "";
    for (;;) {
      const list = await call("GET", `/v1/videos?limit=${PAGE}&order=desc${after && `&after=${after}`}`);
      if (gone) return;
      for (const each of list.data) videos.set(each.id, each);
      draw();
      if (!list.has_more) return;
      after = list.last_id;
    }
  }
  const unsubscribe = subscribe(({ videos: newest }) => {
    let changed = false;
    for (const each of newest) {
      const known = videos.get(each.id);
      if (!known || known.status !== each.status) {
        videos.set(each.id, each);
        changed = true;
        grid.update(each.id);
      }
    }
    if (changed && !gone) draw();
  });
  return {
    element,
    async begin(id) {
      try {
        await load();
        if (id) details.open(videos.get(id) ?? (await call("GET", `/v1/videos/${encodeURIComponent(id)}`)));
      } catch (error) {
        failed(error);
      }
    },
    destroy() {
      gone = true;
      unsubscribe();
      grid.destroy();
      details.close();
    },
  };
}
