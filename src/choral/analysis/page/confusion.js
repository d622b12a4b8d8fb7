// Errors by class: the confusion matrix and its largest cells; missed and false labels; a scatter plot of each target.

const FULL_MATRIX = 40; // classes
const LISTED = 15; // pairs at a time

/** Return the sample counts of a multiclass task as a map from true class * C + predicted class. */
function confusions() {
  const counts = new Map();
  for (let row = 0; row < COUNT; row++) {
    const place = SAMPLES.labels[row] * CLASSES.length + SAMPLES.predicted[row];
    counts.set(place, (counts.get(place) || 0) + 1);
  }
  return counts;
}

function makeConfusion() {
  const body = bodyOf("confusion");
  if (TASK === "multiclass") {
    const counts = confusions(), totals = new Float64Array(CLASSES.length);
    for (const [place, count] of counts) totals[Math.floor(place / CLASSES.length)] += count;
    if (CLASSES.length <= FULL_MATRIX) body.append(matrix(counts, totals));
    if (CLASSES.length > 6) body.append(frequentPairs(counts, totals));
  } else if (TASK === "multilabel") body.append(labelErrors());
  else body.append(el("div", { class: "plots" }, CLASSES.map(scatter)));
}

/** Return the confusion matrix: rows true, columns predicted; the shade is the share of the row. */
function matrix(counts, totals) {
  const size = CLASSES.length, table = el("table", { class: `matrix${size > 12 ? " dense" : ""}` });
  table.style.setProperty("--size", `${Math.min(1060, 150 + size * (size <= 4 ? 150 : size <= 12 ? 78 : 38))}px`);
  table.style.setProperty("--shape", size <= 4 ? "2" : size <= 12 ? "1.35" : "1");
  const first = el("th", { class: "axis" }, size > 12 ? "" : ["true ↓ ", el("span", { class: "narrow-off" }, "predicted →")]);
  table.append(el("thead", {}, el("tr", {}, first, CLASSES.map((name) => el("th", { scope: "col", title: name }, size > 12 ? "" : name)))));
  const rows = el("tbody");
  for (let truth = 0; truth < size; truth++) {
    const line = el("tr", {}, el("th", { scope: "row", title: CLASSES[truth] }, CLASSES[truth]));
    for (let predicted = 0; predicted < size; predicted++) line.append(el("td", {}, matrixCell(counts.get(truth * size + predicted) || 0, totals[truth], truth, predicted)));
    rows.append(line);
  }
  table.append(rows);
  return table;
}

function matrixCell(count, total, truth, predicted) {
  const share = total ? count / total : 0, right = truth === predicted;
  const text = `${plural(count, "sample")} of ${CLASSES[truth]} predicted as ${CLASSES[predicted]}, ${percent(share)}`;
  if (!count) return el("div", { class: "cell", title: text });
  const cell = el("button", { class: "cell", type: "button", title: text, "aria-label": text, "data-pair": `${truth} ${predicted}`, onclick: () => showPair(truth, predicted) },
    CLASSES.length <= 12 ? el("span", {}, whole(count), CLASSES.length <= 6 && el("small", {}, percent(share))) : null);
  cell.style.background = `color-mix(in srgb, var(--${right ? "good" : "bad"}) ${Math.round(10 + 72 * Math.sqrt(share))}%, var(--paper))`;
  if (share > 0.42) cell.style.color = "var(--paper)";
  return cell;
}

const showPair = (truth, predicted) => explore({ ...NOTHING, tab: "loss", truth: String(truth), predicted: String(predicted) }, true);

/** Return the most frequently confused pairs, page by page; with many classes, filtered by a class. */
function frequentPairs(counts, totals) {
  const size = CLASSES.length, pairs = [...counts].map(([place, count]) => ({ truth: Math.floor(place / size), predicted: place % size, count })).filter((pair) => pair.truth !== pair.predicted);
  const each = (pair) => pair.count / totals[pair.truth];
  pairs.sort((one, other) => other.count - one.count || each(other) - each(one) || one.truth - other.truth || one.predicted - other.predicted);
  if (!pairs.length) return note("No class is confused with another.");
  const place = el("div", {}, el("h3", {}, "Most frequent confusions")), rest = el("div");
  const view = paged(rest, LISTED, (part) => el("div", { class: "wide" }, el("table", {}, el("thead", {}, el("tr", {}, el("th", {}, "True"), el("th", {}, "Predicted"), el("th", { class: "number" }, "Samples"), el("th", { class: "number" }, "Share of the class"))),
    el("tbody", {}, part.map((pair) => el("tr", {}, el("td", {}, el("button", { class: "link", type: "button", onclick: () => showPair(pair.truth, pair.predicted) }, CLASSES[pair.truth])), el("td", {}, CLASSES[pair.predicted]), el("td", { class: "number" }, whole(pair.count)), el("td", { class: "number" }, percent(each(pair)))))))));
  if (size > FULL_MATRIX) {
    const pick = choice("Class", [[EVERY, "any"], ...BY_NAME.map((id) => [id, CLASSES[id]])], (value) => view.show(value === EVERY ? pairs : pairs.filter((pair) => pair.truth === Number(value) || pair.predicted === Number(value))));
    place.append(el("div", { class: "filters" }, pick.field));
  }
  place.append(rest);
  view.show(pairs);
  return place;
}

/** Return how often each label of a multilabel task is missed and wrongly predicted. */
function labelErrors() {
  const size = CLASSES.length, has = new Uint32Array(size), missed = new Uint32Array(size), extra = new Uint32Array(size);
  for (let row = 0; row < COUNT; row++) {
    const truth = new Set(idsOf(SAMPLES.labels, row)), predicted = new Set(idsOf(SAMPLES.predicted, row));
    for (const id of truth) { has[id]++; if (!predicted.has(id)) missed[id]++; }
    for (const id of predicted) if (!truth.has(id)) extra[id]++;
  }
  const order = [...CLASSES.keys()].sort((one, other) => missed[other] + extra[other] - missed[one] - extra[one]);
  const countLink = (count, filters) => count ? el("button", { class: "link", type: "button", onclick: () => explore({ ...NOTHING, tab: "loss", ...filters }, true) }, whole(count)) : "0";
  const place = el("div"), view = paged(place, LISTED, (part) => el("div", { class: "wide" }, el("table", {}, el("thead", {}, el("tr", {}, el("th", {}, "Label"), ...["Samples", "Missed", "False"].map((name) => el("th", { class: "number" }, name)))),
    el("tbody", {}, part.map((id) => el("tr", {}, el("td", {}, CLASSES[id]), el("td", { class: "number" }, whole(has[id])),
      el("td", { class: "number" }, countLink(missed[id], { truth: String(id), result: "missed" })), el("td", { class: "number" }, countLink(extra[id], { predicted: String(id), result: "false" }))))))));
  view.show(order);
  return place;
}

/** Return a scatter plot of predicted against true values of one target; a click opens the nearest sample. */
function scatter(name, target) {
  const width = CLASSES.length, truth = (row) => SAMPLES.labels[row * width + target], predicted = (row) => SAMPLES.predicted[row * width + target];
  let low = Infinity, high = -Infinity;
  for (let row = 0; row < COUNT; row++) { low = Math.min(low, truth(row), predicted(row)); high = Math.max(high, truth(row), predicted(row)); }
  const scale = roundScale(low, high);
  return chart({
    title: name, hint: "Click to open the nearest sample", x: scale, y: scale, height: 360, xTitle: "true", yTitle: "predicted", label: `Predictions of ${name}`,
    draw({ svg, at, up, add }) {
      add(el("line", { class: "reference", x1: at(scale.low), x2: at(scale.high), y1: up(scale.low), y2: up(scale.high) }));
      const dots = [];
      for (let row = 0; row < COUNT; row++) dots.push(`M${at(truth(row)).toFixed(1)},${up(predicted(row)).toFixed(1)}h0`);
      add(el("path", { class: "dots", d: dots.join("") }));
      svg.addEventListener("click", (event) => {
        const box = svg.getBoundingClientRect(), x = event.clientX - box.left, y = event.clientY - box.top;
        let best = 0, least = Infinity;
        for (let row = 0; row < COUNT; row++) {
          const distance = (at(truth(row)) - x) ** 2 + (up(predicted(row)) - y) ** 2;
          if (distance < least) { least = distance; best = row; }
        }
        openSheet([best], 0);
      });
    },
  });
}
