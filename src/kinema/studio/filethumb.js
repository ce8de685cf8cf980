// The small image of a file that is the value of a field.

import { contentPath } from "./api.js";
import { h, icon } from "./dom.js";
import { stillOf } from "./stills.js";
import { lazyImage } from "./thumb.js";

/** An image of a value {id, kind}: the thumbnail of a job's clip, or the first frame as the browser decodes it. */
export function thumbnailOf(value) {
  const box = h("span", { class: "thumb" });
  if (value.id.startsWith("video_")) box.append(lazyImage(contentPath(value.id, "thumbnail")));
  else {
    box.append(icon("image"));
    stillOf(value).then(
      (canvas) => {
        if (canvas.width < 128) canvas.classList.add("sharp");
        box.replaceChildren(canvas);
      },
      () => {},
    );
  }
  return box;
}
