"use strict";
// Takes images (dropped, chosen, pasted, photographed), asks /predict, and shows what is said. Texts become text nodes.

const AT_ONCE = 3, SHOWN = 10, NAMED = 5, RETRIES = 4;
const LONG = 24; // letters of a name that leave no room for a bar beside it
const pageOf = (id) => document.getElementById(id);
const list = pageOf("list"), waiting = [], counts = { asked: 0, done: 0, failed: 0 };
let busy = 0;

const megabytes = (bytes) => `${Number((bytes / 1e6).toPrecision(3))} MB`;
pageOf("terms").textContent =
  `JPEG, PNG, WebP, GIF, BMP or TIFF, up to ${megabytes(DATA.limits.max_bytes)} and ${Number((DATA.limits.max_pixels / 1e6).toPrecision(3))} megapixels`;

// Ways in.
const files = pageOf("files"), camera = pageOf("camera");
pageOf("choose").addEventListener("click", () => files.click());
if (navigator.maxTouchPoints) { // a phone, a tablet: elsewhere there is rarely a camera to point
  pageOf("photograph").hidden = false;
  document.querySelector(".invite").textContent = "Ask about an image";
}
pageOf("photograph").addEventListener("click", () => camera.click());
for (const input of [files, camera])
  input.addEventListener("change", () => { take(input.files); input.value = ""; });
let depth = 0; // of elements that are being dragged over: leaving a child is no leaving
const held = (event) => event.dataTransfer && Array.from(event.dataTransfer.types).includes("Files");
addEventListener("dragenter", (event) => { if (held(event)) { event.preventDefault(); depth++; document.body.classList.add("dragged"); } });
addEventListener("dragover", (event) => { if (held(event)) event.preventDefault(); });
addEventListener("dragleave", (event) => { if (held(event) && --depth <= 0) { depth = 0; document.body.classList.remove("dragged"); } });
addEventListener("drop", (event) => {
  if (!event.dataTransfer) return;
  event.preventDefault(); // also of what is no file: the browser would leave the page for it
  depth = 0;
  document.body.classList.remove("dragged");
  take(event.dataTransfer.files);
});
addEventListener("paste", (event) => take(event.clipboardData.files));
pageOf("clear").addEventListener("click", () => {
  waiting.length = 0;
  for (const image of list.querySelectorAll("img")) URL.revokeObjectURL(image.src);
  list.replaceChildren();
  counts.asked = counts.done = counts.failed = 0;
  document.body.classList.remove("asked");
  pageOf("answers").hidden = true;
  pageOf("choose").focus();
});

/** Ask about files, a few at a time; the first of them stands first. */
function take(found) {
  const cards = Array.from(found, (file) => ({ file, card: cardOf(file) }));
  if (!cards.length) return;
  counts.asked += cards.length;
  list.prepend(...cards.map(({ card }) => card.whole));
  waiting.push(...cards);
  document.body.classList.add("asked");
  pageOf("answers").hidden = false;
  for (let free = AT_ONCE - busy; free > 0; free--) next();
  tell();
}

async function next() {
  const one = waiting.shift();
  if (!one) return;
  busy++;
  try {
    const answer = await ask(one.file);
    one.card.said.replaceChildren(...VIEWS[DATA.task](answer), raw(answer));
    if (list.contains(one.card.whole)) counts.done++;
  } catch (error) {
    one.card.said.replaceChildren(...refusal(error));
    if (list.contains(one.card.whole)) counts.failed++;
  }
  busy--;
  tell();
  next();
}

function tell() {
  const left = counts.asked - counts.done - counts.failed;
  pageOf("told").textContent = [
    plural(counts.done, "answer"), counts.failed && `${whole(counts.failed)} without`, left && `${whole(left)} to come`,
  ].filter(Boolean).join(", ");
}

/** Return the answer for a file; an error says what the service said. */
async function ask(file) {
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
    const said = await response.json().catch(() => ({}));
    if (response.ok) return said.answers[0];
    throw new Error(said.detail || `the service answered ${response.status}`);
  }
}

/** Return the card of an image that is being asked about. */
function cardOf(file) {
  const name = file.name || "pasted image";
  const frame = el("div", { class: "frame" });
  const image = el("img", { src: URL.createObjectURL(file), alt: name, onerror: () => frame.replaceChildren(el("span", { class: "none" }, "This browser cannot show it")) });
  frame.append(image);
  const said = el("div", { class: "said" }, el("p", { class: "waits" }, el("span", { class: "spinner" }), "Being asked about"));
  const card = el("article", { class: "card-answer", "aria-label": name }, el("div", { class: "seen" }, frame, el("p", { class: "file" }, name)), said);
  return { whole: card, said };
}

const refusal = (error) => [
  el("p", { class: "verdict bad" }, "No answer"),
  el("p", { class: "remark" }, sentence(error.message)),
];
const raw = (answer) => el("details", {}, el("summary", {}, "JSON"), el("pre", {}, JSON.stringify(answer, null, 2)));

/** Return a bar: a share of one, its name before it, and behind it what it says, if anything, and the amount. */
function bar(name, share, style, { says, mark } = {}) {
  const fill = el("span", { class: "level" });
  fill.style.width = `${Math.max(0, Math.min(1, share)) * 100}%`;
  const track = el("span", { class: "groove" }, fill);
  if (mark !== undefined) {
    const line = el("span", { class: "notch", title: `given from ${percent(mark)}` });
    line.style.left = `calc(${mark * 100}% - 1px)`;
    track.append(line);
  }
  return el("li", { class: style }, el("span", { class: "of", title: name }, name), track,
    says !== undefined && el("span", { class: "says", title: says }, says), el("span", { class: "amount" }, percent(share)));
}

/** Return the class of a list of bars: names that are long stand above theirs. */
const tally = (names, style = "tally") => (names.some((name) => name.length > LONG) ? `${style} stacked` : style);

/** Return bars, the largest first; of many the rest at a button's press. */
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

function classView(answer) {
  const possible = answer.possible, votes = Object.entries(answer.votes || {});
  const remarks = [];
  if (possible) {
    const set = `The set of ${coverage()} coverage`;
    if (!possible.length) remarks.push(`${set} is empty: the image is unlike those of the calibration`);
    else if (possible.length === 1 && possible[0] === answer.label) remarks.push(`${set} holds this class alone`);
    else remarks.push(`${set} holds ${inQuotes(possible)}`);
  }
  if (answer.unsure) remarks.push(`Less than the ${percent(DATA.unsure_below)} from which on an answer counts as sure`);
  const agree = votes.filter(([, [label]]) => label === answer.label).length;
  return [
    el("p", { class: "verdict" }, el("span", {}, answer.label), el("span", { class: "amount" }, percent(answer.probability)), answer.unsure && el("span", { class: "tag bad" }, "unsure")),
    ...remarks.map((text) => el("p", { class: "remark" }, sentence(text))),
    el("h3", {}, DATA.rule === "hard" ? "Shares of votes" : "Probability"),
    ...bars(DATA.classes.map((name, place) => ({ name, share: answer.probabilities[place], style: name === answer.label ? "chosen" : "" }))),
    votes.length > 1 && el("h3", {}, `Members: ${agree} of ${votes.length} agree`),
    votes.length > 1 && el("ul", { class: tally(votes.flatMap(([name, [label]]) => [name, label]), "tally by-member") }, votes.map(([name, [label, share]]) =>
      bar(name, share, label === answer.label ? "chosen" : "differs", { says: label }))),
  ].filter(Boolean);
}

function labelView(answer) {
  const given = Object.entries(answer.labels), votes = Object.entries(answer.votes || {});
  const perhaps = (answer.possible || []).filter((name) => !(name in answer.labels));
  return [
    el("p", { class: "verdict" }, given.length ? given.map(([name, share]) => el("span", {}, `${name} `, el("span", { class: "amount" }, percent(share)))) : "No label"),
    perhaps.length && el("p", { class: "remark" }, sentence(`At ${coverage()} coverage ${inQuotes(perhaps)} cannot be left out`)),
    el("h3", {}, "Probability"),
    ...bars(Object.entries(answer.probabilities).map(([name, share]) => ({ name, share, style: name in answer.labels ? "chosen" : "", mark: DATA.thresholds[name] }))),
    votes.length > 1 && el("h3", {}, "Members"),
    votes.length > 1 && facts(votes.map(([name, labels]) => [name, labels.join(" · ") || "none"])),
  ].filter(Boolean);
}

function numberView(answer) {
  const votes = Object.entries(answer.votes || {}), names = Object.keys(answer.values);
  return [
    el("dl", { class: "numbers" }, names.map((name) => el("div", {}, el("dt", {}, name),
      el("dd", { class: "figure" }, short(answer.values[name]), votes.length > 1 && el("small", {}, `± ${short(answer.spreads[name])}`)),
      answer.intervals && el("dd", { class: "remark" }, answer.intervals[name]
        ? `${coverage()} interval: ${short(answer.intervals[name][0])} to ${short(answer.intervals[name][1])}` : `No bounded interval at ${coverage()}`)))),
    votes.length > 1 && el("h3", {}, "Members"),
    votes.length > 1 && facts(votes.map(([name, values]) => [name, names.length > 1
      ? names.map((target) => `${target}: ${short(values[target])}`).join(" · ") : short(values[names[0]])])),
  ].filter(Boolean);
}

const facts = (pairs) => el("dl", { class: "facts" }, pairs.map(([name, text]) => [el("dt", {}, name), el("dd", {}, text)]));
const VIEWS = { multiclass: classView, one_against_all: classView, multilabel: labelView, regression: numberView };
