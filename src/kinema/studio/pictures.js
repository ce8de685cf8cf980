// What each frame of the timeline looks like: the clip, keyframes, the latest result, or the preview while it is made.

import { framesOf } from "./frames.js";
import { stillOf } from "./stills.js";

/** Pictures by frame. ``redraw()`` is called when one has arrived. */
export function pictures({ given, doc, source, startOf, fps, count, redraw }) {
  const stills = new Map();
  const urls = new Map();
  let clip = null;
  let result = null;
  let preview = null;
  let showing = "inputs";
  let onion = false;

  function fileOf(key) {
    const medium = doc.media.get(key);
    if (!medium) return null;
    if (medium.id || !medium.blob) return { id: medium.id, kind: medium.kind };
    if (!urls.has(key)) urls.set(key, URL.createObjectURL(medium.blob));
    return { url: urls.get(key), kind: medium.kind, blob: medium.blob };
  }
  /** The still of a medium, as a canvas; null until it is decoded. */
  function still(key) {
    if (!stills.has(key)) {
      stills.set(key, null);
      const file = fileOf(key);
      if (file)
        stillOf(file).then(
          (canvas) => (stills.set(key, canvas), redraw()),
          () => {},
        );
    }
    return stills.get(key);
  }
  const keyframe = (frame) => (given()[frame] ? still(given()[frame].slice(6)) : null);
  const seconds = (frame) => startOf() / (source()?.fps || fps()) + (frame + 0.5) / fps();
  const beyond = (frame) =>
    frame >=
    (source()?.frames ? Math.ceil(((source().frames - startOf()) / (source().fps || fps())) * fps()) : Infinity);

  function refresh() {
    const key = doc.request.video?.slice(6) ?? null;
    if (clip?.key !== key || (clip && !source())) {
      clip?.frames.destroy();
      clip = null;
    }
    if (source() && !clip) clip = { key, frames: framesOf(fileOf(key), () => redraw()) };
    if (clip) {
      const shown = Math.min(count(), 48);
      clip.frames.want(
        ...Array.from({ length: shown }, (_, at) => seconds(Math.floor((at * count()) / shown))).filter(
          (_, at) => !beyond(Math.floor((at * count()) / shown)),
        ),
      );
    }
  }
  function picture(frame) {
    if (showing === "result") {
      if (preview) return preview[Math.min(preview.length - 1, Math.floor((frame * preview.length) / count()))];
      return result?.frames.get((frame + 0.5) / result.fps) ?? (want(frame), null);
    }
    return (
      keyframe(frame) ?? (clip && !beyond(frame) ? (clip.frames.get(seconds(frame)) ?? (want(frame), null)) : null)
    );
  }
  function want(frame) {
    if (showing === "result")
      result?.frames.want(...[0, 1, 2, 3].map((by) => (Math.min(frame + by, result.count - 1) + 0.5) / result.fps));
    else if (clip)
      clip.frames.want(
        ...[0, 1, 2, 3, -1]
          .map((by) => frame + by)
          .filter((at) => at >= 0 && at < count() && !beyond(at))
          .map(seconds),
      );
  }
  function ghosts(frame) {
    if (!onion) return [];
    if (showing === "inputs" && !clip) {
      const at = Object.keys(given())
        .map(Number)
        .sort((a, b) => a - b);
      const [before, after] = [at.filter((each) => each < frame).at(-1), at.find((each) => each > frame)];
      return [before, after].flatMap((each) => (each !== undefined && keyframe(each) ? [[keyframe(each), 0.4]] : []));
    }
    return [frame - 1, frame + 1].flatMap((at) => {
      const other = at >= 0 && at < count() ? picture(at) : null;
      return other ? [[other, 0.3]] : [];
    });
  }
  return {
    picture,
    want,
    refresh,
    onion: ghosts,
    live: () => showing === "result" && Boolean(preview),
    thumb: (frame) => (clip && !beyond(frame) ? clip.frames.get(seconds(frame)) : null),
    showing: () => showing,
    hasResult: () => Boolean(result || preview),
    onionOn: () => onion,
    setOnion: (on) => ((onion = on), redraw()),
    show(what) {
      showing = what;
      redraw();
    },
    /** The finished clip {id, frames, fps}, or null. */
    result(video) {
      result?.frames.destroy();
      preview = null;
      result = video
        ? {
            fps: video.fps,
            count: video.frames,
            id: video.id,
            frames: framesOf({ id: video.id, kind: "video" }, () => redraw()),
          }
        : null;
      if (result)
        result.frames.want(...Array.from({ length: Math.min(64, result.count) }, (_, at) => (at + 0.5) / result.fps));
      showing = result ? "result" : "inputs";
      redraw();
    },
    /** Frames of the clip so far, as images. */
    preview(frames) {
      preview?.forEach((each) => each.close?.());
      preview = frames;
      if (frames) showing = "result";
      redraw();
    },
    /** Put the image of a medium into an element. */
    into(key, place) {
      const show = (canvas) => {
        const small = document.createElement("canvas");
        small.width = small.height = 48;
        const scale = 48 / Math.min(canvas.width, canvas.height);
        small
          .getContext("2d")
          .drawImage(
            canvas,
            (48 - canvas.width * scale) / 2,
            (48 - canvas.height * scale) / 2,
            canvas.width * scale,
            canvas.height * scale,
          );
        place.replaceChildren(small);
      };
      const known = still(key);
      if (known) return show(known);
      const file = fileOf(key);
      if (file) stillOf(file).then(show, () => {});
      return undefined;
    },
    destroy() {
      clip?.frames.destroy();
      result?.frames.destroy();
      for (const url of urls.values()) URL.revokeObjectURL(url);
    },
  };
}
