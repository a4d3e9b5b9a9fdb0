// Writes animated GIF files (GIF89a): 256 greys, or 6 levels of each of red, green and blue.

const COLOURS = 256;
const CLEAR = 256;
const END = 257;

/**
 * Returns the bytes of a GIF that plays for ever.
 * @param {ImageData[]} frames - all of one size.
 * @param {number[]} delays - of each, in hundredths of a second.
 * @param {boolean} grey - whether red, green and blue are equal everywhere.
 */
export function gif(frames, delays, grey) {
  const { width, height } = frames[0];
  const out = [];
  const word = (number) => out.push(number & 255, number >> 8);
  const text = (string) => out.push(...[...string].map((character) => character.charCodeAt(0)));
  text("GIF89a");
  word(width);
  word(height);
  out.push(0xf7, 0, 0); // a palette of 256 colours
  out.push(...palette(grey));
  out.push(0x21, 0xff, 11);
  text("NETSCAPE2.0");
  out.push(3, 1, 0, 0, 0); // for ever
  frames.forEach((frame, at) => {
    out.push(0x21, 0xf9, 4, 0);
    word(delays[at]);
    out.push(0, 0);
    out.push(0x2c, 0, 0, 0, 0);
    word(width);
    word(height);
    out.push(0, 8);
    const data = compressed(indices(frame.data, grey));
    for (let i = 0; i < data.length; i += 255) {
      const block = data.slice(i, i + 255);
      out.push(block.length, ...block);
    }
    out.push(0);
  });
  out.push(0x3b);
  return new Uint8Array(out);
}

function palette(grey) {
  const colours = [];
  for (let i = 0; i < COLOURS; i++) {
    if (grey) colours.push(i, i, i);
    else if (i < 216) colours.push(51 * Math.floor(i / 36), 51 * (Math.floor(i / 6) % 6), 51 * (i % 6));
    else colours.push(0, 0, 0);
  }
  return colours;
}

function indices(rgba, grey) {
  const found = new Uint8Array(rgba.length / 4);
  for (let i = 0; i < found.length; i++) {
    const [red, green, blue] = [rgba[4 * i], rgba[4 * i + 1], rgba[4 * i + 2]];
    const level = (value) => Math.round(value / 51);
    found[i] = grey ? red : 36 * level(red) + 6 * level(green) + level(blue);
  }
  return found;
}

/** LZW with codes of 9 to 12 bits, the lowest bit first. */
function compressed(pixels) {
  const bytes = [];
  let bits = 0;
  let held = 0;
  let size = 9;
  let next = END + 1;
  let codes = new Map();
  const put = (code) => {
    held |= code << bits;
    bits += size;
    while (bits >= 8) {
      bytes.push(held & 255);
      held >>>= 8;
      bits -= 8;
    }
  };
  put(CLEAR);
  let prefix = pixels[0];
  for (let i = 1; i < pixels.length; i++) {
    const key = prefix * COLOURS + pixels[i];
    const known = codes.get(key);
    if (known !== undefined) {
      prefix = known;
      continue;
    }
    put(prefix);
    prefix = pixels[i];
    if (next === 4096) {
      put(CLEAR);
      codes = new Map();
      size = 9;
      next = END + 1;
      continue;
    }
    codes.set(key, next);
    if (next === 1 << size) size++;
    next++;
  }
  put(prefix);
  put(END);
  if (bits) bytes.push(held & 255);
  return bytes;
}
