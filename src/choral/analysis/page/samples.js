// The samples of the split: cards, and a dialog with the details of one sample.

const META = DATA.meta, TASK = META.task, CLASSES = META.classes, MEMBERS = META.members, SPLIT = META.split;
const SAMPLES = (() => {
  const raw = DATA.samples, lists = (column) => ({ offsets: unpacked(column.offsets), ids: unpacked(column.ids) });
  const predictions = (column) => (column && TASK === "multilabel" ? lists(column) : unpacked(column));
  const slices = {};
  for (const [column, { values, codes }] of Object.entries(raw.slices)) slices[column] = { values, codes: unpacked(codes) };
  return {
    keys: raw.keys, loss: unpacked(raw.loss), confidence: unpacked(raw.confidence), right: unpacked(raw.right), slices,
    labels: predictions(raw.labels), predicted: predictions(raw.predicted), votes: raw.votes && raw.votes.map(predictions),
    voteConfidence: raw.vote_confidence && unpacked(raw.vote_confidence), top: unpacked(raw.top),
    topProbability: unpacked(raw.top_probability), topCount: raw.top_count,
  };
})();
const COUNT = META.n;
const BY_NAME = [...CLASSES.keys()].sort((one, other) => COLLATOR.compare(CLASSES[one], CLASSES[other]));
let images = null;

/** Return the image of a sample as a data URL, or null; the JSON of all images is parsed on first use. */
function imageUrl(split, key) {
  images ||= JSON.parse(document.getElementById("images").textContent);
  const byKey = images[split];
  return byKey && Object.hasOwn(byKey, key) ? `data:image/jpeg;base64,${byKey[key]}` : null;
}

/** Return the label ids of a row. */
const idsOf = ({ offsets, ids }, row) => Array.from(ids.subarray(offsets[row], offsets[row + 1]));
const namesOf = (ids) => (ids.length ? ids.map((id) => CLASSES[id]).join(", ") : "none");
const numbersOf = (values, row) => Array.from({ length: CLASSES.length }, (_, target) => values[row * CLASSES.length + target]);
const asNumbers = (numbers) => (CLASSES.length === 1 ? short(numbers[0]) : numbers.map((one, target) => `${CLASSES[target]} ${short(one)}`).join(", "));

/** Return the label or prediction of a row as text. */
function labelText(column, row) {
  if (TASK === "multiclass") return CLASSES[column[row]];
  return TASK === "multilabel" ? namesOf(idsOf(column, row)) : asNumbers(numbersOf(column, row));
}

/** Return how many members are wrong on a row; null for regression. */
function wrongMembers(row) {
  if (!SAMPLES.votes || TASK === "regression") return null;
  return SAMPLES.votes.filter((votes) => !isCorrect(votes, row)).length;
}

function isCorrect(column, row) {
  if (TASK === "multiclass") return column[row] === SAMPLES.labels[row];
  const one = idsOf(column, row), other = idsOf(SAMPLES.labels, row);
  return one.length === other.length && one.every((id, place) => id === other[place]);
}

/** The standard deviation of each target, the unit of its errors; 1 for a constant target. */
const SPREADS = TASK !== "regression" ? [] : CLASSES.map((_, target) => {
  let sum = 0, squares = 0, low = Infinity, high = -Infinity;
  for (let row = 0; row < COUNT; row++) {
    const value = SAMPLES.labels[row * CLASSES.length + target];
    sum += value;
    squares += value * value;
    low = Math.min(low, value);
    high = Math.max(high, value);
  }
  return low < high ? Math.sqrt(Math.max(squares / COUNT - (sum / COUNT) ** 2, 1e-12)) : 1;
});

/** Return label and prediction of a row, short enough for a card: of several targets the worst. */
function brief(row) {
  if (TASK !== "regression" || CLASSES.length === 1) return [labelText(SAMPLES.labels, row), labelText(SAMPLES.predicted, row)];
  const truth = numbersOf(SAMPLES.labels, row), answer = numbersOf(SAMPLES.predicted, row);
  const far = CLASSES.map((_, target) => Math.abs(truth[target] - answer[target]) / SPREADS[target]);
  const worst = far.indexOf(Math.max(...far));
  return [`${short(truth[worst])} (${CLASSES[worst]})`, short(answer[worst])];
}

/** Return an image in its frame, or a text where the page does not include it. */
function imageFrame(split, key, alt) {
  const url = imageUrl(split, key);
  if (!url) return el("div", { class: "picture" }, el("span", { class: "missing" }, "image not included in this page"));
  const image = el("img", { src: url, alt, loading: "lazy", decoding: "async" });
  image.addEventListener("load", () => image.classList.toggle("tiny", image.naturalWidth < 64), { once: true });
  return el("div", { class: "picture" }, image);
}

/** Return the predictions of the members as green and red squares. */
function voteMarks(row) {
  if (!SAMPLES.votes || MEMBERS.length < 2 || MEMBERS.length > 24 || TASK === "regression") return el("span");
  const wrong = wrongMembers(row);
  return el("span", { class: "votes", role: "img", "aria-label": `${wrong} of ${MEMBERS.length} members wrong`, title: `${wrong} of ${MEMBERS.length} members wrong` },
    SAMPLES.votes.map((votes) => el("span", { class: isCorrect(votes, row) ? "right" : "wrong" })));
}

/** Return a card of row `rows[place]`; a click opens the dialog, in which arrows lead to the other rows. */
function card(rows, place) {
  const row = rows[place], right = SAMPLES.right[row], [truth, answer] = brief(row);
  const style = TASK === "regression" ? "" : right ? "good" : "bad";
  const share = TASK === "regression" ? "" : sure(SAMPLES.confidence[row]);
  return el("button", { class: "card", type: "button", onclick: () => openSheet(rows, place), "data-row": row },
    imageFrame(SPLIT, SAMPLES.keys[row], SAMPLES.keys[row]),
    el("span", { class: "line" }, el("span", { class: "name" }, el("i", {}, "true "), truth)),
    el("span", { class: "line" }, el("span", { class: "name" }, el("i", {}, "predicted "), el("span", { class: style }, answer)), el("span", { class: "muted" }, share)),
    el("span", { class: "line foot" }, voteMarks(row), el("span", { class: "muted" }, `${LOSS} ${short(SAMPLES.loss[row])}`)));
}
const LOSS = TASK === "regression" ? "error" : "loss";

/** Return a function that draws cards of the rows from `first` on; the dialog steps through all of them. */
const cards = (all) => (rows, first) => el("div", { class: "cards" }, rows.map((_, place) => card(all(), first + place)));

const SHEET = { dialog: null, rows: [], place: 0 };

/** Open the dialog of one sample; arrows lead to the others of the list. */
function openSheet(rows, place) {
  if (!SHEET.dialog) {
    SHEET.dialog = el("dialog", { "aria-label": "Sample", tabindex: -1, onclick: (event) => event.target === SHEET.dialog && SHEET.dialog.close() });
    SHEET.dialog.addEventListener("keydown", (event) => {
      if (event.key === "ArrowRight") step(1);
      else if (event.key === "ArrowLeft") step(-1);
    });
    document.body.append(SHEET.dialog);
  }
  Object.assign(SHEET, { rows, place });
  fillSheet();
  if (!SHEET.dialog.open) SHEET.dialog.showModal();
}

function step(by) {
  const place = SHEET.place + by;
  if (place < 0 || place >= SHEET.rows.length) return;
  SHEET.place = place;
  const focused = document.activeElement.getAttribute("aria-label");
  fillSheet();
  const again = focused && SHEET.dialog.querySelector(`button[aria-label="${focused}"]:not(:disabled)`);
  (again || SHEET.dialog).focus(); // the focused button was replaced, and arrow keys would be lost
}

function fillSheet() {
  const row = SHEET.rows[SHEET.place], key = SAMPLES.keys[row];
  const arrow = (by, text, name) => el("button", { class: "icon", type: "button", "aria-label": name, title: name, onclick: () => step(by), disabled: SHEET.place + by < 0 || SHEET.place + by >= SHEET.rows.length }, text);
  SHEET.dialog.replaceChildren(
    el("div", { class: "head" }, el("span", { class: "key", title: key }, key), el("span", { class: "hint" }, `${whole(SHEET.place + 1)} of ${whole(SHEET.rows.length)}`),
      arrow(-1, "←", "Previous sample"), arrow(1, "→", "Next sample"),
      el("button", { class: "icon", type: "button", "aria-label": "Close", title: "Close", onclick: () => SHEET.dialog.close() }, "✕")),
    el("div", { class: "sheet" }, el("div", {}, imageFrame(SPLIT, key, key)), el("div", {}, ...details(row))));
  SHEET.dialog.scrollTop = 0;
}

/** Return the details of a row. */
function details(row) {
  const parts = [el("p", { class: "title" }, labelText(SAMPLES.labels, row)), el("p", { class: "lead" }, TASK === "regression" ? "is the true value" : TASK === "multilabel" ? "are its true labels" : "is its true class")];
  if (SAMPLES.topCount && TASK !== "regression") parts.push(el("h3", {}, TASK === "multiclass" ? `Predicted by ${META.predictor}` : "Labels with the largest loss"), el("div", { class: "bars" }, tops(row)));
  if (TASK !== "multiclass") parts.push(el("h3", {}, `Predicted by ${META.predictor}`), el("p", { class: "lead" }, labelText(SAMPLES.predicted, row)));
  if (SAMPLES.votes && MEMBERS.length > 1) parts.push(el("h3", {}, "Prediction of each member"), ...votes(row));
  parts.push(el("h3", {}, "More"), el("dl", { class: "facts" },
    fact(TASK === "regression" ? "Error" : "Loss", short(SAMPLES.loss[row]) + (TASK === "regression" ? " standard deviations" : "")),
    Object.entries(SAMPLES.slices).map(([column, { values, codes }]) => fact(column, values[codes[row]]))));
  return parts;
}

const fact = (name, value) => [el("dt", {}, name), el("dd", {}, value)];

function bar(name, share, style) {
  const fill = el("div", { class: `fill ${style}` });
  fill.style.width = `${100 * Math.max(0, Math.min(1, share))}%`;
  return [el("span", { class: "name" }, name), el("div", { class: "track" }, fill), el("span", { class: "value" }, sure(share))];
}

function tops(row) {
  const parts = [];
  for (let place = 0; place < SAMPLES.topCount; place++) {
    const id = SAMPLES.top[row * SAMPLES.topCount + place], share = SAMPLES.topProbability[row * SAMPLES.topCount + place] / 65535;
    const truth = TASK === "multiclass" ? SAMPLES.labels[row] === id : idsOf(SAMPLES.labels, row).includes(id);
    const style = TASK === "multiclass" ? (truth ? "right" : place === 0 ? "wrong" : "") : (truth === share > 0.5 ? "right" : "wrong");
    parts.push(...bar(TASK === "multilabel" && truth ? `${CLASSES[id]} (true label)` : CLASSES[id], share, style));
  }
  return parts;
}

function votes(row) {
  const confidence = (member) => SAMPLES.voteConfidence[row * MEMBERS.length + member] / 255;
  if (TASK === "multiclass") {
    return [el("div", { class: "bars" }, MEMBERS.map((name, member) => {
      const id = SAMPLES.votes[member][row], right = id === SAMPLES.labels[row];
      return bar(`${name}: ${CLASSES[id]}`, confidence(member), right ? "right" : "wrong");
    }))];
  }
  return [el("dl", { class: "facts" }, MEMBERS.map((name, member) => fact(name, labelText(SAMPLES.votes[member], row))))];
}
