// The list of samples: order, filters, pages. Other sections set its filters and scroll to it.

const EVERY = "";
const FILTERS = { tab: "loss", result: EVERY, truth: EVERY, predicted: EVERY, column: EVERY, slice: EVERY, text: "" };
const TABS = {
  loss: { name: TASK === "regression" ? "Largest error" : "Highest loss", keep: () => true, by: (row) => -SAMPLES.loss[row] },
  sure: { name: "Most confident errors", keep: (row) => !SAMPLES.right[row], by: (row) => -SAMPLES.confidence[row] },
  torn: { name: "Members disagree", keep: (row) => disagreement(row) > 0, by: (row) => -disagreement(row) },
  unsure: { name: "Least confident", keep: () => true, by: (row) => SAMPLES.confidence[row] },
};
const RESULTS = {
  wrong: ["wrong", (row) => !SAMPLES.right[row]],
  right: ["correct", (row) => SAMPLES.right[row] === 1],
  all: ["wrong, and so is every member", (row) => !SAMPLES.right[row] && wrongMembers(row) === MEMBERS.length],
  some: ["wrong, though a member is correct", (row) => !SAMPLES.right[row] && wrongMembers(row) < MEMBERS.length],
  lucky: ["correct, though a member is wrong", (row) => SAMPLES.right[row] && wrongMembers(row) > 0],
  missed: ["a label is missed", (row) => missing(SAMPLES.labels, SAMPLES.predicted, row)],
  false: ["a label is predicted wrongly", (row) => missing(SAMPLES.predicted, SAMPLES.labels, row)],
  high: ["too high", (row) => SAMPLES.predicted[row] > SAMPLES.labels[row]],
  low: ["too low", (row) => SAMPLES.predicted[row] < SAMPLES.labels[row]],
};
let found = [], list = null;
const CONTROLS = {};

/** Return the share of members that differ from the majority; for regression, their spread. */
function disagreement(row) {
  if (!SAMPLES.votes || MEMBERS.length < 2) return 0;
  if (TASK === "regression") return -SAMPLES.confidence[row];
  const counts = new Map();
  for (const votes of SAMPLES.votes) {
    const prediction = TASK === "multiclass" ? votes[row] : idsOf(votes, row).join();
    counts.set(prediction, (counts.get(prediction) || 0) + 1);
  }
  return 1 - Math.max(...counts.values()) / MEMBERS.length;
}

/** Whether `one` has a label that `other` lacks. */
function missing(one, other, row) {
  const present = new Set(idsOf(other, row));
  return idsOf(one, row).some((id) => !present.has(id));
}

function availableFilters() {
  const several = SAMPLES.votes && MEMBERS.length > 1;
  const tabs = Object.keys(TABS).filter((name) => (name !== "sure" || TASK !== "regression") && (name !== "torn" || several) && (name !== "unsure" || TASK !== "regression"));
  if (TASK === "regression") return { tabs, results: CLASSES.length === 1 ? ["high", "low"] : [] };
  return { tabs, results: ["wrong", "right", ...(several ? ["all", "some", "lucky"] : []), ...(TASK === "multilabel" ? ["missed", "false"] : [])] };
}

function makeExplorer() {
  const body = bodyOf("worst"), { tabs, results } = availableFilters();
  const tabBar = el("div", { class: "tabs", role: "group", "aria-label": "Order of the samples" }, tabs.map((name) =>
    el("button", { type: "button", "data-tab": name, onclick: () => explore({ tab: name }) }, TABS[name].name)));
  const search = el("input", { type: "search", placeholder: "part of a key", oninput: () => explore({ text: search.value }) });
  const filters = el("div", { class: "filters" });
  const add = (name, label, options, change) => {
    CONTROLS[name] = choice(label, options, change || ((value) => explore({ [name]: value })));
    filters.append(CONTROLS[name].field);
  };
  if (results.length) add("result", "Result", [[EVERY, "any"], ...results.map((name) => [name, RESULTS[name][0]])]);
  if (TASK !== "regression") {
    add("truth", TASK === "multiclass" ? "True class" : "True label", [[EVERY, "any"], ...BY_NAME.map((id) => [id, CLASSES[id]])]);
    add("predicted", TASK === "multiclass" ? "Predicted class" : "Predicted label", [[EVERY, "any"], ...BY_NAME.map((id) => [id, CLASSES[id]])]);
  }
  const columns = Object.keys(SAMPLES.slices);
  if (columns.length) {
    add("column", "Slice by", [[EVERY, "–"], ...columns.map((name) => [name, name])], (value) => explore({ column: value, slice: EVERY }));
    add("slice", "Slice", [[EVERY, "any"]]);
  }
  filters.append(labelled("Key", search));
  CONTROLS.text = { select: search };
  const status = el("span", { class: "hint", "aria-live": "polite", id: "found" });
  const clear = el("button", { class: "button", type: "button", id: "clear", onclick: () => explore(NOTHING) }, "Clear filters");
  const place = el("div");
  body.append(tabBar, filters, el("div", { class: "bar" }, status, clear), place);
  list = paged(place, innerWidth < 640 ? 12 : 24, cards(() => found));
  CONTROLS.show = (text, filtered) => {
    status.textContent = text;
    clear.hidden = !filtered;
    for (const button of tabBar.children) button.setAttribute("aria-pressed", String(button.dataset.tab === FILTERS.tab));
  };
  explore({});
}
const NOTHING = { result: EVERY, truth: EVERY, predicted: EVERY, column: EVERY, slice: EVERY, text: "" };

/** Change filters and update the list; `scroll`: also scroll to it. */
function explore(changes, scroll = false) {
  Object.assign(FILTERS, changes);
  const { slice } = CONTROLS;
  if (slice && ("column" in changes)) {
    const values = FILTERS.column === EVERY ? [] : SAMPLES.slices[FILTERS.column].values;
    slice.select.replaceChildren(...[[EVERY, "any"], ...values.map((value, code) => [code, value])].map(([value, text]) => el("option", { value }, text)));
    slice.select.disabled = !values.length;
  } else if (slice && FILTERS.column === EVERY) slice.select.disabled = true;
  for (const [name, { select }] of Object.entries(CONTROLS)) if (select && name in FILTERS) select.value = FILTERS[name];
  found = matchingRows();
  const filtered = Object.keys(NOTHING).some((name) => FILTERS[name] !== EVERY);
  CONTROLS.show(found.length ? plural(found.length, "sample") + (found.length < COUNT ? ` of ${whole(COUNT)}` : "") : "No sample matches: change or clear the filters.", filtered);
  list.show(found);
  if (scroll) document.getElementById("worst").scrollIntoView();
}

/** Return the rows that match the filters, in the order of the tab. */
function matchingRows() {
  const tab = TABS[FILTERS.tab], tests = [tab.keep];
  if (FILTERS.result !== EVERY) tests.push(RESULTS[FILTERS.result][1]);
  for (const [name, column] of [["truth", SAMPLES.labels], ["predicted", SAMPLES.predicted]]) {
    if (FILTERS[name] === EVERY) continue;
    const id = Number(FILTERS[name]);
    tests.push(TASK === "multiclass" ? (row) => column[row] === id : (row) => idsOf(column, row).includes(id));
  }
  if (FILTERS.slice !== EVERY) {
    const { codes } = SAMPLES.slices[FILTERS.column], code = Number(FILTERS.slice);
    tests.push((row) => codes[row] === code);
  }
  const text = FILTERS.text.trim().toLowerCase();
  if (text) tests.push((row) => SAMPLES.keys[row].toLowerCase().includes(text));
  const rows = [], values = new Float64Array(COUNT);
  for (let row = 0; row < COUNT; row++) {
    if (!tests.every((test) => test(row))) continue;
    values[row] = tab.by(row);
    rows.push(row);
  }
  return Int32Array.from(rows).sort((one, other) => values[one] - values[other] || SAMPLES.loss[other] - SAMPLES.loss[one] || one - other);
}
