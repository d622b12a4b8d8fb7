"use strict";
// Takes images (dropped, chosen, pasted, photographed), posts them to /predict, and shows the predictions as text nodes.

const AT_ONCE = 3, SHOWN = 10, NAMED = 5, RETRIES = 4;
const LONG = 24; // characters of a name beyond which it stands above its bar
const pageOf = (id) => document.getElementById(id);
const list = pageOf("list"), waiting = [], counts = { sent: 0, done: 0, failed: 0 };
let busy = 0;

const megabytes = (bytes) => `${Number((bytes / 1e6).toPrecision(3))} MB`;
pageOf("terms").textContent =
  `JPEG, PNG, WebP, GIF, BMP or TIFF, up to ${megabytes(DATA.limits.max_bytes)} and ${Number((DATA.limits.max_pixels / 1e6).toPrecision(3))} megapixels`;

// Ways in.
const files = pageOf("files"), camera = pageOf("camera");
pageOf("choose").addEventListener("click", () => files.click());
if (navigator.maxTouchPoints) { // a phone or tablet; other devices rarely have a camera to point
  pageOf("photograph").hidden = false;
  document.querySelector(".invite").textContent = "Predict an image";
}
pageOf("photograph").addEventListener("click", () => camera.click());
for (const input of [files, camera])
  input.addEventListener("change", () => { take(input.files); input.value = ""; });
let depth = 0; // of nested elements being dragged over: leaving a child is not leaving the page
const held = (event) => event.dataTransfer && Array.from(event.dataTransfer.types).includes("Files");
addEventListener("dragenter", (event) => { if (held(event)) { event.preventDefault(); depth++; document.body.classList.add("dragged"); } });
addEventListener("dragover", (event) => { if (held(event)) event.preventDefault(); });
addEventListener("dragleave", (event) => { if (held(event) && --depth <= 0) { depth = 0; document.body.classList.remove("dragged"); } });
addEventListener("drop", (event) => {
  if (!event.dataTransfer) return;
  event.preventDefault(); // also for other content, for which the browser would leave the page
  depth = 0;
  document.body.classList.remove("dragged");
  take(event.dataTransfer.files);
});
addEventListener("paste", (event) => take(event.clipboardData.files));
pageOf("clear").addEventListener("click", () => {
  waiting.length = 0;
  for (const image of list.querySelectorAll("img")) URL.revokeObjectURL(image.src);
  list.replaceChildren();
  counts.sent = counts.done = counts.failed = 0;
  document.body.classList.remove("has-predictions");
  pageOf("predictions").hidden = true;
  pageOf("choose").focus();
});

/** Predict files, a few at a time; the newest come first. */
function take(found) {
  const cards = Array.from(found, (file) => ({ file, card: cardOf(file) }));
  if (!cards.length) return;
  counts.sent += cards.length;
  list.prepend(...cards.map(({ card }) => card.whole));
  waiting.push(...cards);
  document.body.classList.add("has-predictions");
  pageOf("predictions").hidden = false;
  for (let free = AT_ONCE - busy; free > 0; free--) next();
  updateStatus();
}

async function next() {
  const one = waiting.shift();
  if (!one) return;
  busy++;
  try {
    const prediction = await predict(one.file);
    one.card.result.replaceChildren(...VIEWS[DATA.task](prediction), raw(prediction));
    if (list.contains(one.card.whole)) counts.done++;
  } catch (error) {
    one.card.result.replaceChildren(...refusal(error));
    if (list.contains(one.card.whole)) counts.failed++;
  }
  busy--;
  updateStatus();
  next();
}

function updateStatus() {
  const left = counts.sent - counts.done - counts.failed;
  pageOf("status").textContent = [
    plural(counts.done, "prediction"), counts.failed && `${whole(counts.failed)} failed`, left && `${whole(left)} pending`,
  ].filter(Boolean).join(", ");
}

/** Return the prediction for a file; an error has the service's message. */
async function predict(file) {
  if (file.size > DATA.limits.max_bytes)
    throw new Error(`${megabytes(file.size)}, more than the limit of ${megabytes(DATA.limits.max_bytes)}`);
  const body = new FormData();
  body.append("file", file, file.name || "image");
  for (let tries = 0; ; tries++) {
    let response;
    try {
      response = await fetch("predict", { method: "POST", body });
    } catch {
      throw new Error("the service cannot be reached");
    }
    if (response.status === 503 && tries < RETRIES) {
      await new Promise((done) => setTimeout(done, 1000 * (Number(response.headers.get("Retry-After")) || 1)));
      continue;
    }
    const content = await response.json().catch(() => ({}));
    if (response.ok) return content.answers[0];
    throw new Error(content.detail || `the service returned status ${response.status}`);
  }
}

/** Return the card of an image whose prediction is pending. */
function cardOf(file) {
  const name = file.name || "pasted image";
  const frame = el("div", { class: "frame" });
  const image = el("img", { src: URL.createObjectURL(file), alt: name, onerror: () => frame.replaceChildren(el("span", { class: "none" }, "This browser cannot show it")) });
  frame.append(image);
  const result = el("div", { class: "result" }, el("p", { class: "waits" }, el("span", { class: "spinner" }), "Predicting"));
  const card = el("article", { class: "card-prediction", "aria-label": name }, el("div", { class: "image" }, frame, el("p", { class: "file" }, name)), result);
  return { whole: card, result };
}

const refusal = (error) => [
  el("p", { class: "verdict bad" }, "No prediction"),
  el("p", { class: "remark" }, sentence(error.message)),
];
const raw = (prediction) => el("details", {}, el("summary", {}, "JSON"), el("pre", {}, JSON.stringify(prediction, null, 2)));

/** Return a bar for a share of 1: the name before it, the vote (of a member) and the percentage behind it. */
function bar(name, share, style, { vote, mark } = {}) {
  const fill = el("span", { class: "level" });
  fill.style.width = `${Math.max(0, Math.min(1, share)) * 100}%`;
  const track = el("span", { class: "groove" }, fill);
  if (mark !== undefined) {
    const line = el("span", { class: "notch", title: `threshold ${percent(mark)}` });
    line.style.left = `calc(${mark * 100}% - 1px)`;
    track.append(line);
  }
  return el("li", { class: style }, el("span", { class: "of", title: name }, name), track,
    vote !== undefined && el("span", { class: "vote", title: vote }, vote), el("span", { class: "amount" }, percent(share)));
}

/** Return the class of a list of bars: long names stand above their bars. */
const tally = (names, style = "tally") => (names.some((name) => name.length > LONG) ? `${style} stacked` : style);

/** Return bars, largest first; a button shows the rest of a long list. */
function bars(rows) {
  const ordered = rows.slice().sort((one, other) => other.share - one.share);
  const place = el("ul", { class: tally(rows.map((row) => row.name)) }, ordered.slice(0, SHOWN).map((row) => bar(row.name, row.share, row.style, row)));
  if (ordered.length <= SHOWN) return [place];
  const more = el("button", { class: "link rest", type: "button", onclick: () => {
    place.append(...ordered.slice(SHOWN).map((row) => bar(row.name, row.share, row.style, row)));
    more.remove();
  } }, `All ${whole(ordered.length)} classes`);
  return [place, more];
}

const and = (words) => (words.length < 2 ? words.join("") : `${words.slice(0, -1).join(", ")} and ${words[words.length - 1]}`);
const inQuotes = (names) => {
  const quoted = names.map((name) => `“${name}”`);
  return and(quoted.length > NAMED + 1 ? [...quoted.slice(0, NAMED), `${whole(quoted.length - NAMED)} more`] : quoted);
};
const coverage = () => `${Number((100 * DATA.coverage).toPrecision(4))} %`;

function classView(prediction) {
  const possible = prediction.possible, votes = Object.entries(prediction.votes || {});
  const remarks = [];
  if (possible) {
    const set = `The prediction set (${coverage()} coverage)`;
    if (!possible.length) remarks.push(`${set} is empty: the image differs from those of the calibration data`);
    else if (possible.length === 1 && possible[0] === prediction.label) remarks.push(`${set} contains only this class`);
    else remarks.push(`${set} contains ${inQuotes(possible)}`);
  }
  if (prediction.unsure) remarks.push(`Below the confidence threshold of ${percent(DATA.unsure_below)}`);
  const agree = votes.filter(([, [label]]) => label === prediction.label).length;
  return [
    el("p", { class: "verdict" }, el("span", {}, prediction.label), el("span", { class: "amount" }, percent(prediction.probability)), prediction.unsure && el("span", { class: "tag bad" }, "unsure")),
    ...remarks.map((text) => el("p", { class: "remark" }, sentence(text))),
    el("h3", {}, DATA.rule === "hard" ? "Vote shares" : "Probability"),
    ...bars(DATA.classes.map((name, place) => ({ name, share: prediction.probabilities[place], style: name === prediction.label ? "chosen" : "" }))),
    votes.length > 1 && el("h3", {}, `Members: ${agree} of ${votes.length} agree`),
    votes.length > 1 && el("ul", { class: tally(votes.flatMap(([name, [label]]) => [name, label]), "tally by-member") }, votes.map(([name, [label, share]]) =>
      bar(name, share, label === prediction.label ? "chosen" : "differs", { vote: label }))),
  ].filter(Boolean);
}

function labelView(prediction) {
  const given = Object.entries(prediction.labels), votes = Object.entries(prediction.votes || {});
  const perhaps = (prediction.possible || []).filter((name) => !(name in prediction.labels));
  return [
    el("p", { class: "verdict" }, given.length ? given.map(([name, share]) => el("span", {}, `${name} `, el("span", { class: "amount" }, percent(share)))) : "No label"),
    perhaps.length && el("p", { class: "remark" }, sentence(`At ${coverage()} coverage, ${inQuotes(perhaps)} cannot be excluded`)),
    el("h3", {}, "Probability"),
    ...bars(Object.entries(prediction.probabilities).map(([name, share]) => ({ name, share, style: name in prediction.labels ? "chosen" : "", mark: DATA.thresholds[name] }))),
    votes.length > 1 && el("h3", {}, "Members"),
    votes.length > 1 && facts(votes.map(([name, labels]) => [name, labels.join(" · ") || "none"])),
  ].filter(Boolean);
}

function numberView(prediction) {
  const votes = Object.entries(prediction.votes || {}), names = Object.keys(prediction.values);
  return [
    el("dl", { class: "numbers" }, names.map((name) => el("div", {}, el("dt", {}, name),
      el("dd", { class: "figure" }, short(prediction.values[name]), votes.length > 1 && el("small", {}, `± ${short(prediction.spreads[name])}`)),
      prediction.intervals && el("dd", { class: "remark" }, prediction.intervals[name]
        ? `${coverage()} interval: ${short(prediction.intervals[name][0])} to ${short(prediction.intervals[name][1])}` : `No bounded interval at ${coverage()}`)))),
    votes.length > 1 && el("h3", {}, "Members"),
    votes.length > 1 && facts(votes.map(([name, values]) => [name, names.length > 1
      ? names.map((target) => `${target}: ${short(values[target])}`).join(" · ") : short(values[names[0]])])),
  ].filter(Boolean);
}

const facts = (pairs) => el("dl", { class: "facts" }, pairs.map(([name, text]) => [el("dt", {}, name), el("dd", {}, text)]));
const VIEWS = { multiclass: classView, one_against_all: classView, multilabel: labelView, regression: numberView };
