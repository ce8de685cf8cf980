// Masks painted with a brush: hard-edged white on black, one canvas a frame, as PNG in the document.

/** A canvas of a mask's file, or an empty one. */
export async function maskCanvas(blob, width, height) {
  const canvas = document.createElement("canvas");
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.imageSmoothingEnabled = false;
  context.fillStyle = "#000";
  context.fillRect(0, 0, width, height);
  if (blob) {
    const image = await createImageBitmap(blob);
    context.drawImage(image, 0, 0, width, height);
    image.close();
  }
  return canvas;
}

/** Paint a line of discs of a radius from one point to another, without soft edges: every pixel is in or out. */
export function stroke(canvas, from, to, radius, on) {
  const context = canvas.getContext("2d");
  const [left, top] = [Math.min(from.x, to.x) - radius, Math.min(from.y, to.y) - radius].map((each) =>
    Math.max(0, Math.floor(each)),
  );
  const right = Math.min(canvas.width, Math.ceil(Math.max(from.x, to.x) + radius + 1));
  const bottom = Math.min(canvas.height, Math.ceil(Math.max(from.y, to.y) + radius + 1));
  if (right <= left || bottom <= top) return;
  const data = context.getImageData(left, top, right - left, bottom - top);
  const [dx, dy] = [to.x - from.x, to.y - from.y];
  const length = dx * dx + dy * dy;
  const value = on ? 255 : 0;
  for (let y = 0; y < data.height; y += 1) {
    for (let x = 0; x < data.width; x += 1) {
      const [px, py] = [left + x + 0.5 - from.x, top + y + 0.5 - from.y];
      const share = length ? Math.max(0, Math.min(1, (px * dx + py * dy) / length)) : 0;
      if ((px - share * dx) ** 2 + (py - share * dy) ** 2 > radius * radius) continue;
      data.data.fill(value, 4 * (y * data.width + x), 4 * (y * data.width + x) + 3);
    }
  }
  context.putImageData(data, left, top);
}

export function isEmpty(canvas) {
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  for (let at = 0; at < data.length; at += 4) if (data[at]) return false;
  return true;
}

/** Swap inside and outside. */
export function invert(canvas) {
  const context = canvas.getContext("2d");
  context.globalCompositeOperation = "difference";
  context.fillStyle = "#fff";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.globalCompositeOperation = "source-over";
}

export const pngOf = (canvas) => new Promise((resolve) => canvas.toBlob(resolve, "image/png"));

/** A tint of one colour where a mask is white, as a canvas. */
export function tinted(mask, colour, opacity) {
  const canvas = document.createElement("canvas");
  canvas.width = mask.width;
  canvas.height = mask.height;
  const context = canvas.getContext("2d");
  context.drawImage(mask, 0, 0);
  const image = context.getImageData(0, 0, canvas.width, canvas.height);
  for (let at = 0; at < image.data.length; at += 4) {
    const on = image.data[at] > 127;
    image.data.set(on ? [...colour, Math.round(255 * opacity)] : [0, 0, 0, 0], at);
  }
  context.putImageData(image, 0, 0);
  return canvas;
}

/** The masks of an answer of /v1/masks: a function from a frame to its mask as a canvas. */
export async function carriedMasks({ frames, width, height, columns, image }) {
  const bytes = Uint8Array.from(atob(image), (letter) => letter.charCodeAt(0));
  const sheet = await createImageBitmap(new Blob([bytes], { type: "image/png" }));
  return (frame) => {
    if (frame < 0 || frame >= frames) return null;
    const canvas = document.createElement("canvas");
    canvas.width = width;
    canvas.height = height;
    const [x, y] = [(frame % columns) * width, Math.floor(frame / columns) * height];
    canvas.getContext("2d", { willReadFrequently: true }).drawImage(sheet, x, y, width, height, 0, 0, width, height);
    return canvas;
  };
}
