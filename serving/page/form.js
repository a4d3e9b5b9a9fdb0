// The form, with what the server can draw and within its limits.

import { plan, rollSeed } from "./setting.js";

const SAMPLER_NAMES = {
  SAMPLER_DDPM: "DDPM",
  SAMPLER_DDIM: "DDIM",
  SAMPLER_DPMPP_2M: "DPM-Solver++ (2M)",
  SAMPLER_DDIM_STOCHASTIC: "DDIM, stochastic",
};
const MAX_SEED = 2n ** 64n - 1n;
const NUMBERS = ["count", "num_steps", "guidance_scale"];

const $ = (id) => document.getElementById(id);

export class Form {
  /** @param {object} catalog - what /v1/models says. */
  constructor(catalog) {
    this.catalog = catalog;
    this.errors = [...document.querySelectorAll(".error")];
    $("model").replaceChildren(...catalog.models.map(({ name }) => new Option(name, name)));
    $("model-field").hidden = catalog.models.length < 2;
    $("model").onchange = () => this.choose($("model").value);
    $("number").oninput = () => this.checkChip($("number").value);
    $("seed").value ||= rollSeed();
    $("count").value ||= 16;
    this.choose(catalog.models[0].name);
  }

  /** Whether labels are digits, of which numbers can be made. */
  get digits() {
    const names = this.model.label_names;
    return names.length === 10 && names.every((name, label) => name === String(label));
  }

  /** Shows the labels, defaults and limits of a model. */
  choose(name) {
    this.model = this.catalog.models.find((each) => each.name === name) ?? this.catalog.models[0];
    const { model } = this;
    $("model").value = model.name;
    $("chips").replaceChildren(...model.label_names.map((text, label) => this.chip(text, label)));
    $("form").classList.toggle("digits", this.digits);
    $("number-field").hidden = !this.digits;
    $("number").value = "";
    $("sampler").replaceChildren(
      ...this.catalog.samplers.map((each) => new Option(SAMPLER_NAMES[each] ?? each, each)),
    );
    $("sampler").value = model.default_sampler;
    $("num_steps").value = model.default_num_steps;
    $("guidance_scale").value = model.default_guidance_scale;
    $("count").max = this.catalog.max_images_per_request;
    $("num_steps").max = model.num_train_timesteps;
    $("guidance_scale").max = this.catalog.max_guidance_scale;
    $("version").textContent = `${model.name} ${model.version}`;
    this.checkChip(this.digits ? "7" : "0");
  }

  /** Fills in what a link says; the rest stays as it is. */
  fill(linked) {
    if (linked.model && linked.model !== this.model.name) this.choose(linked.model);
    for (const name of ["seed", "sampler", ...NUMBERS]) {
      if (linked[name] !== undefined) $(name).value = linked[name];
    }
    if (!linked.labels) return;
    const text = linked.labels.join("");
    $("number").value = this.digits && linked.labels.length > 1 ? text : "";
    this.checkChip(linked.labels.length === 1 ? text : "");
  }

  chip(text, label) {
    const chip = document.createElement("label");
    const input = Object.assign(document.createElement("input"), {
      type: "radio",
      name: "label",
      value: String(label),
      onchange: () => ($("number").value = ""),
    });
    const name = document.createElement("span");
    name.textContent = text;
    chip.append(input, name);
    return chip;
  }

  checkChip(value) {
    document.getElementsByName("label").forEach((each) => (each.checked = each.value === value));
  }

  /** Returns the setting, or null with the errors shown. */
  read() {
    const typed = this.digits ? $("number").value.trim() : "";
    const checked = document.querySelector('input[name="label"]:checked');
    const found = [];
    if (typed && !/^\d+$/.test(typed)) {
      found.push({ field: "label", description: "a number has digits only" });
    } else if (!typed && !checked) {
      found.push({ field: "label", description: "choose one" });
    }
    const seed = $("seed").value.trim();
    if (!/^\d{1,20}$/.test(seed) || BigInt(seed) > MAX_SEED) {
      found.push({ field: "seed", description: `a whole number, at most ${MAX_SEED}` });
    }
    for (const name of NUMBERS) {
      const { validity, min, max } = $(name);
      const wrong = validity.badInput || validity.stepMismatch || $(name).value === "";
      if (wrong || validity.rangeUnderflow || validity.rangeOverflow) {
        const kind = name === "guidance_scale" ? "a number" : "a whole number";
        found.push({ field: name, description: `${kind} in ${min} to ${max}` });
      }
    }
    this.showErrors(found);
    if (found.length) return null;
    const setting = {
      model: this.model.name,
      labels: typed ? [...typed].map(Number) : [Number(checked.value)],
      count: Number($("count").value),
      seed: String(BigInt(seed)),
      sampler: $("sampler").value,
      num_steps: Number($("num_steps").value),
      guidance_scale: Number($("guidance_scale").value),
    };
    // A digit that is there twice is asked for twice as often.
    const limit = this.catalog.max_images_per_request;
    if (plan(setting).every(({ request }) => request.count <= limit)) return setting;
    this.showErrors([{ field: "count", description: `too many: ${limit} of one digit at most` }]);
    return null;
  }

  /** Shows errors at their fields; returns those that have none. */
  showErrors(violations) {
    for (const each of this.errors) each.hidden = true;
    document.querySelectorAll("[aria-invalid]").forEach((each) => each.removeAttribute("aria-invalid"));
    const shown = violations.filter(({ field }) => $(`${field}-error`));
    for (const { field, description } of shown) {
      $(`${field}-error`).textContent = description;
      $(`${field}-error`).hidden = false;
      ($(field) ?? $("number")).setAttribute("aria-invalid", "true");
    }
    if (shown.length) ($(shown[0].field) ?? $("number")).focus();
    return violations.filter((each) => !shown.includes(each));
  }
}
