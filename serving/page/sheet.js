// Images on one canvas, in rows and columns, and the film of how they came out of noise.

const MARGIN = 2; // as the command's grid has it

export class Sheet {
  /** @param {HTMLCanvasElement} canvas */
  constructor(canvas) {
    this.canvas = canvas;
    this.cells = [];
  }

  /** Starts anew, with noise in every cell. @param {object} model - one of /v1/models. */
  begin(model, count, columns) {
    this.model = model;
    this.columns = columns;
    this.rows = Math.ceil(count / columns);
    this.canvas.width = columns * (model.width + MARGIN) + MARGIN;
    this.canvas.height = this.rows * (model.height + MARGIN) + MARGIN;
    this.context = this.canvas.getContext("2d", { willReadFrequently: true });
    this.cells = Array.from({ length: count }, () => ({ frames: [], shown: 0, finished: false }));
    this.clear(this.context);
    this.cells.forEach((_, cell) => this.draw(this.context, cell, noise(model)));
  }

  /** Takes how an image looks so far, or in the end. @param {string} data - raw pixels, base64. */
  put(cell, data, finished) {
    const bytes = Uint8Array.from(atob(data), (character) => character.charCodeAt(0));
    this.cells[cell].frames.push(rgba(bytes, this.model));
    this.cells[cell].finished = finished;
  }

  /** Shows the next frame of every cell; returns whether there is more to show. */
  advance() {
    let more = false;
    this.cells.forEach((each, cell) => {
      if (each.shown < each.frames.length) this.draw(this.context, cell, each.frames[each.shown++]);
      more ||= each.shown < each.frames.length;
    });
    return more;
  }

  /** Shows the newest frame of every cell. */
  showNewest() {
    this.cells.forEach((each, cell) => {
      if (each.frames.length) this.draw(this.context, cell, each.frames.at(-1));
      each.shown = each.frames.length;
    });
  }

  rewind() {
    this.cells.forEach((each, cell) => {
      each.shown = 0;
      this.draw(this.context, cell, noise(this.model));
    });
  }

  /** Returns a canvas with the last images, each pixel `scale` pixels wide. */
  picture(scale, frame = Infinity) {
    const native = this.blank(1);
    const length = this.length;
    this.cells.forEach((each, cell) => {
      // They all end together; one whose reader has missed previews begins later.
      const at = Math.min(frame, length - 1) - (length - each.frames.length);
      if (each.frames.length) this.draw(native.getContext("2d"), cell, each.frames[Math.max(0, at)]);
    });
    const large = this.blank(scale);
    const context = large.getContext("2d");
    context.imageSmoothingEnabled = false;
    context.drawImage(native, 0, 0, large.width, large.height);
    return large;
  }

  /** How many frames the film has. */
  get length() {
    return Math.max(0, ...this.cells.map((each) => each.frames.length));
  }

  get finished() {
    return this.cells.filter((each) => each.finished).length;
  }

  blank(scale) {
    const canvas = document.createElement("canvas");
    canvas.width = this.canvas.width * scale;
    canvas.height = this.canvas.height * scale;
    const context = canvas.getContext("2d");
    context.fillStyle = "white";
    context.fillRect(0, 0, canvas.width, canvas.height);
    return canvas;
  }

  clear(context) {
    context.clearRect(0, 0, this.canvas.width, this.canvas.height);
  }

  draw(context, cell, pixels) {
    const { width, height } = this.model;
    const x = MARGIN + (cell % this.columns) * (width + MARGIN);
    const y = MARGIN + Math.floor(cell / this.columns) * (height + MARGIN);
    context.putImageData(new ImageData(pixels, width, height), x, y);
  }
}

/** Grey or RGB, row-major, to what a canvas takes. */
function rgba(bytes, { width, height, channels }) {
  const pixels = new Uint8ClampedArray(width * height * 4);
  for (let i = 0; i < width * height; i++) {
    for (let c = 0; c < 3; c++) pixels[4 * i + c] = bytes[channels * i + (channels < 3 ? 0 : c)];
    pixels[4 * i + 3] = 255;
  }
  return pixels;
}

/** What diffusion begins with. Only to look at: the server has its own, from the seed. */
function noise(model) {
  const bytes = new Uint8Array(model.width * model.height * model.channels);
  for (let i = 0; i < bytes.length; i++) {
    const normal = Math.sqrt(-2 * Math.log(1 - Math.random())) * Math.cos(2 * Math.PI * Math.random());
    bytes[i] = Math.max(0, Math.min(255, 127.5 * (1 + normal)));
  }
  return rgba(bytes, model);
}
