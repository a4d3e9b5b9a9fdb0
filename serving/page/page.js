// The playground: what stands in the form is drawn, and shown as it comes out of noise.

import { ApiError, describeServer, generate, listModels } from "./api.js";
import * as commands from "./commands.js";
import { Form } from "./form.js";
import { explain, hideNotice, notice } from "./notice.js";
import { copy, saveGif, savePng } from "./saving.js";
import { columnsOf, fromFragment, plan, rollSeed, toFragment } from "./setting.js";
import { Sheet } from "./sheet.js";

const FRAME_MS = 80; // the film is quicker on many a server than an eye
const LAST_FRAME_MS = 1500;
const MAX_FRAMES = 24; // of one image
const SHEET_HEIGHT = 496; // in CSS pixels, if each pixel of an image can have two
const LARGEST_PIXEL = 8;

const $ = (id) => document.getElementById(id);
const calm = matchMedia("(prefers-reduced-motion: reduce)");
const sheet = new Sheet($("sheet"));

let form; // from when the models are known
let server = {};
let running = null; // the AbortController of what is being drawn
let drawn = null; // the setting that is on the sheet, and its requests
let playing = 0;

function token() {
  return $("token").value.trim();
}

async function start() {
  $("token").value = sessionStorage.getItem("token") ?? "";
  try {
    server = await describeServer();
    const catalog = await listModels(token());
    form = new Form(catalog);
    $("form").classList.remove("unknown");
    $("draw").textContent = "Draw";
    $("draw").hidden = false;
    hideNotice();
    $("token-field").hidden = !server.needs_token;
    openLink();
  } catch (error) {
    show(error, start);
  }
}

/** Draws what the address of the page says, if it says anything. */
function openLink() {
  const linked = fromFragment(location.hash);
  form.fill(linked ?? {});
  const { name, version } = form.model;
  const otherModel = linked?.model && linked.model !== name;
  if (linked?.seed && !otherModel) {
    draw();
    if (linked.version && linked.version !== version) {
      notice(`The link is of ${name} ${linked.version}. Here is ${version}, which may draw other images.`);
    }
  } else {
    sheet.begin(form.model, 16, 4);
    fit();
    $("frame").classList.add("idle");
    $("sheet").setAttribute("aria-label", "Noise. Nothing is drawn yet.");
    say("Choose what to draw.");
    if (otherModel) notice(`The link is of the model ${linked.model}, which this server does not have.`);
  }
}

async function draw() {
  running?.abort();
  if (!form) return start();
  const controller = (running = new AbortController());
  hideNotice();
  form.showErrors([]);
  const setting = form.read();
  if (!setting) {
    finish(controller);
    return;
  }
  const { model } = form;
  const parts = plan(setting);
  const count = setting.labels.length * setting.count;
  drawn = null;
  $("tools").hidden = $("commands").hidden = true;
  $("draw").textContent = "Stop";
  $("draw").classList.add("running");
  sheet.begin(model, count, columnsOf(setting));
  fit();
  $("frame").classList.remove("idle");
  $("frame").scrollIntoView({ block: "nearest", behavior: calm.matches ? "auto" : "smooth" });
  describeSheet(setting, false);
  say("Waiting for the server …");
  history.replaceState(null, "", `#${toFragment(setting, model.version)}`);
  const timing = { queue: 0, compute: 0 };
  try {
    await Promise.all(parts.map((part) => drawPart(part, timing, controller.signal)));
  } catch (error) {
    if (running !== controller) return; // another drawing has begun
    controller.abort();
    finish(controller);
    if (error.name === "AbortError") say("Stopped.");
    else show(error, draw);
    return;
  }
  drawn = { setting, parts };
  finish(controller);
  announce(count, timing);
  describeSheet(setting, true);
  showCommands();
}

async function drawPart({ request, cell }, timing, signal) {
  const asked = {
    ...request,
    format: "IMAGE_FORMAT_RAW_UINT8",
    preview_every: Math.ceil(request.num_steps / MAX_FRAMES),
  };
  for await (const { kind, fields } of generate(asked, token(), signal)) {
    if (signal.aborted) return;
    if (kind === "preview") sheet.put(cell(fields.image.index), fields.image.data, false);
    if (kind === "image") sheet.put(cell(fields.index), fields.data, true);
    if (kind === "summary") {
      timing.queue = Math.max(timing.queue, fields.queue_seconds);
      timing.compute = Math.max(timing.compute, fields.compute_seconds);
    } else {
      say(`Drawing … ${sheet.finished} of ${sheet.cells.length} finished`);
    }
    play();
  }
}

/** Shows frames as they come, not quicker than an eye can follow. */
function play() {
  if (calm.matches) {
    sheet.showNewest();
    return;
  }
  if (playing) return;
  const step = () => {
    playing = sheet.advance() ? setTimeout(step, FRAME_MS) : 0;
  };
  playing = setTimeout(step, FRAME_MS);
}

function finish(controller) {
  if (running !== controller) return;
  running = null;
  $("draw").textContent = "Draw";
  $("draw").classList.remove("running");
}

function announce(count, { queue, compute }) {
  const images = count === 1 ? "1 image" : `${count} images`;
  say(`${images}: waited ${seconds(queue)}, computed for ${seconds(compute)}.`);
  $("tools").hidden = false;
}

function seconds(number) {
  return number < 1 ? `${Math.round(1000 * number)} ms` : `${number.toFixed(2)} s`;
}

function describeSheet(setting, finished) {
  const names = setting.labels.map((label) => form.model.label_names[label]);
  const what = form.digits ? names.join("") : names.join(", ");
  const state = finished ? "" : " Being drawn.";
  $("sheet").setAttribute("aria-label", `${what}, ${setting.count} times, seed ${setting.seed}.${state}`);
}

function showCommands() {
  const requests = drawn.parts.map(({ request }) => request);
  $("curl").textContent = commands.curl(requests, document.baseURI.replace(/#.*/, ""), server.needs_token);
  $("client").textContent = commands.client(requests, location.hostname, server);
  $("commands").hidden = false;
}

/** Makes the canvas as large as there is room: with whole pixels, unless they would be tiny. */
function fit() {
  const { canvas } = sheet;
  const style = getComputedStyle($("frame"));
  const padding = Number.parseFloat(style.paddingLeft) + Number.parseFloat(style.paddingRight);
  const room = $("frame").clientWidth - padding;
  const ratio = devicePixelRatio || 1;
  const high = Math.max(2, SHEET_HEIGHT / canvas.height);
  const wanted = Math.min(room / canvas.width, high, LARGEST_PIXEL);
  const whole = wanted * ratio >= 3;
  const scale = whole ? Math.floor(wanted * ratio) / ratio : wanted;
  canvas.classList.toggle("smooth", !whole);
  canvas.style.width = `${canvas.width * scale}px`;
  canvas.style.height = `${canvas.height * scale}px`;
}

function say(text) {
  if ($("status").textContent !== text) $("status").textContent = text;
}

/** Says what did not work, at its field or above the images. */
function show(error, again) {
  say("");
  $("frame").classList.add("idle");
  if (!(error instanceof ApiError)) throw error;
  if (error.status === 401) {
    $("token-field").hidden = $("draw").hidden = false;
    $("token").focus();
  }
  const rest = form ? form.showErrors(error.violations) : error.violations;
  if (error.violations.length > rest.length) return;
  notice(explain(error, token() !== ""), again);
}

function fileName() {
  const { model, labels, seed } = drawn.setting;
  return `${model}-${labels.join("-")}-seed-${seed}`;
}

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  if (running) running.abort();
  else draw();
});
$("die").addEventListener("click", () => {
  $("seed").value = rollSeed();
  draw();
});
$("token").addEventListener("change", () => {
  sessionStorage.setItem("token", token());
  start();
});
$("replay").addEventListener("click", () => {
  sheet.rewind();
  play();
});
$("png").addEventListener("click", () => savePng(sheet, fileName()));
$("gif").addEventListener("click", () => saveGif(sheet, fileName(), FRAME_MS, LAST_FRAME_MS));
$("link").addEventListener("click", (event) => copy(location.href, event.currentTarget));
document.querySelectorAll("[data-copy]").forEach((button) => {
  button.addEventListener("click", () => copy($(button.dataset.copy).textContent, button));
});
addEventListener("resize", () => sheet.model && fit());
addEventListener("hashchange", () => form && openLink());

start();
