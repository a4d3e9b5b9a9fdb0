// A setting is all that decides the pixels:
// {model, labels, count, seed, sampler, num_steps, guidance_scale}. The seed is text: it has 64 bits.

/** Returns the requests that draw a setting, one for each label, and the cells of their images. */
export function plan(setting) {
  const columns = setting.labels.length;
  const positions = new Map();
  setting.labels.forEach((label, column) => {
    positions.set(label, [...(positions.get(label) ?? []), column]);
  });
  // A label that is there twice gets twice as many images: its twins differ.
  return [...positions].map(([label, at]) => ({
    request: {
      label,
      count: setting.count * at.length,
      seed: setting.seed,
      model: setting.model,
      sampler: setting.sampler,
      num_steps: setting.num_steps,
      guidance_scale: setting.guidance_scale,
    },
    cell: (index) => Math.floor(index / at.length) * columns + at[index % at.length],
  }));
}

/** Returns how many columns the sheet has: about square for one label, as the command's grid. */
export function columnsOf(setting) {
  return setting.labels.length > 1 ? setting.labels.length : Math.ceil(Math.sqrt(setting.count));
}

/** Returns the fragment of a link to a setting. */
export function toFragment(setting, version) {
  const fields = { ...setting, labels: setting.labels.join("."), version };
  return new URLSearchParams(fields).toString();
}

/** Returns what a fragment holds of a setting, or null if it is no link to one. */
export function fromFragment(fragment) {
  const fields = new URLSearchParams(fragment.replace(/^#/, ""));
  if (!fields.has("labels")) return null;
  const found = { version: fields.get("version") ?? "" };
  const labels = fields.get("labels").split(".").filter((text) => /^\d{1,9}$/.test(text));
  if (labels.length) found.labels = labels.map(Number);
  for (const name of ["model", "seed", "sampler"]) {
    if (fields.get(name)) found[name] = fields.get(name);
  }
  for (const name of ["count", "num_steps", "guidance_scale"]) {
    const number = Number.parseFloat(fields.get(name));
    if (Number.isFinite(number)) found[name] = number;
  }
  return found;
}

/** Returns a seed that is easy to read out and to type. */
export function rollSeed() {
  return String(crypto.getRandomValues(new Uint32Array(1))[0]);
}
