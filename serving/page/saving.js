// Takes things out of the page: to the clipboard, into files.

import { gif } from "./gif.js";

const LARGE_PIXELS = 512; // files are about so wide, with whole pixels

/** Copies a text, and says so on the button for a moment. */
export async function copy(text, button) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // Only pages of https and of this machine may; the old way works everywhere.
    const area = document.createElement("textarea");
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
    button.focus();
  }
  const label = button.firstChild;
  button.dataset.label ??= label.textContent;
  label.textContent = "Copied";
  setTimeout(() => (label.textContent = button.dataset.label), 1500);
}

/** Saves the last images of a sheet. */
export function savePng(sheet, name) {
  sheet.picture(scaleFor(sheet)).toBlob((blob) => save(blob, `${name}.png`), "image/png");
}

/** Saves how the images of a sheet came out of noise. */
export function saveGif(sheet, name, frameMs, lastFrameMs) {
  const frames = Array.from({ length: sheet.length }, (_, at) => {
    const canvas = sheet.picture(scaleFor(sheet), at);
    return canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  });
  const delays = frames.map((_, at) => (at + 1 < frames.length ? frameMs : lastFrameMs) / 10);
  const bytes = gif(frames, delays, sheet.model.channels < 3);
  save(new Blob([bytes], { type: "image/gif" }), `${name}.gif`);
}

function scaleFor(sheet) {
  return Math.max(1, Math.floor(LARGE_PIXELS / sheet.canvas.width));
}

function save(blob, name) {
  const anchor = document.createElement("a");
  anchor.href = URL.createObjectURL(blob);
  anchor.download = name;
  anchor.click();
  setTimeout(() => URL.revokeObjectURL(anchor.href), 60_000);
}
