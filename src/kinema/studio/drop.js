// Files dropped anywhere on a view, or pasted.

import { h } from "./dom.js";

/** Call ``take(file)`` for the first file dropped on the page or pasted, until ``signal`` is aborted. */
export function dropAnywhere(host, take, signal) {
  const veil = h(
    "div",
    { class: "veil", hidden: true },
    h("p", {}, "Drop an image or a clip"),
    h("p", { class: "muted" }, "A clip that Kinema generated also brings back its settings"),
  );
  host.append(veil);
  let inside = 0;
  const files = (event) => event.dataTransfer?.types.includes("Files");
  const hide = () => ((inside = 0), (veil.hidden = true));

  addEventListener("dragenter", (event) => files(event) && ((inside += 1), (veil.hidden = false)), { signal });
  addEventListener("dragleave", (event) => files(event) && (inside -= 1) <= 0 && hide(), { signal });
  addEventListener("dragover", (event) => files(event) && event.preventDefault(), { signal });
  addEventListener("kinema:dropped", hide, { signal });
  addEventListener(
    "drop",
    (event) => {
      if (!files(event)) return;
      event.preventDefault();
      hide();
      if (event.dataTransfer.files.length) take(event.dataTransfer.files[0]);
    },
    { signal },
  );
  addEventListener(
    "paste",
    (event) => {
      const file = [...(event.clipboardData?.files ?? [])][0];
      if (!file) return;
      event.preventDefault();
      take(file);
    },
    { signal },
  );
}
