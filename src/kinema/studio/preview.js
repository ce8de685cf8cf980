// The clip so far: each preview is one image with its frames side by side, played on a canvas.

import { h } from "./dom.js";

const still = matchMedia("(prefers-reduced-motion: reduce)");

/** A canvas that plays the latest preview: {element, show(data), destroy()}. Keeps one image at a time. */
export function previewCanvas(fps) {
  const canvas = h("canvas", {
    class: "screen-media sharp enlarged",
    role: "img",
    "aria-label": "Preview of the clip so far",
  });
  const context = canvas.getContext("2d");
  let strip = null;
  let frames = 1;
  let newest = 0;
  let timer = 0;
  let shown = 0;

  function draw() {
    if (!strip) return;
    const width = strip.width / frames;
    if (canvas.width !== width || canvas.height !== strip.height) {
      canvas.width = width;
      canvas.height = strip.height;
    }
    context.drawImage(strip, shown * width, 0, width, strip.height, 0, 0, width, strip.height);
  }
  function advance() {
    shown = still.matches ? Math.floor(frames / 2) : (shown + 1) % frames;
    draw();
  }
  return {
    element: canvas,
    async show({ data, mime = "image/png", frames: count = 1 }) {
      newest += 1;
      const mine = newest;
      const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
      const image = await createImageBitmap(new Blob([bytes], { type: mime }));
      if (mine !== newest) return image.close();
      strip?.close();
      strip = image;
      frames = Math.max(1, count);
      shown = Math.min(shown, frames - 1);
      draw();
      timer ||= setInterval(advance, 1000 / Math.min(24, fps || 8));
      return undefined;
    },
    destroy() {
      newest += 1;
      clearInterval(timer);
      strip?.close();
      strip = null;
    },
  };
}
