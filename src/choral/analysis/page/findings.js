// The data: probable label errors, near-duplicates, and data health.

function makeLabelErrors() {
  const body = bodyOf("labels"), { suspects, sources, note: missing } = DATA.label_errors;
  for (const source of sources) body.append(el("p", { class: "lead" }, `${source.split}: ${whole(source.found)} of ${plural(source.n, "label")} ${source.found === 1 ? "is" : "are"} suspect${source.expected_share === null ? "" : `; about ${percent(source.expected_share)} are estimated to be wrong`}. ${source.note}`));
  if (missing) body.append(el("p", { class: sources.length ? "note" : "empty" }, coded(missing)));
  if (!suspects.length) return sources.length && body.append(empty("No label is suspect."));
  const place = el("div", { class: "spaced" });
  body.append(place, keysAsText(suspects));
  const splits = new Set(suspects.map((one) => one.split));
  paged(place, innerWidth < 640 ? 12 : 24, (part) => el("div", { class: "cards" }, part.map((one) => suspectCard(one, splits.size > 1)))).show(suspects);
}

function suspectCard(one, several) {
  const numbers = TASK === "regression";
  return sampleCard(one.split, one.key,
    el("span", { class: "line" }, el("span", { class: "name", title: one.label }, el("i", {}, "label "), one.label), el("span", { class: "muted" }, numbers ? "" : sure(one.label_score))),
    el("span", { class: "line" }, el("span", { class: "name", title: one.suggested }, el("i", {}, "suggested "), el("span", { class: "accent-text" }, one.suggested)), el("span", { class: "muted" }, numbers ? "" : sure(one.suggested_score))),
    el("span", { class: "line foot" }, el("span", { class: "name muted key", title: one.key }, one.key), several && el("span", { class: "tag" }, one.split)));
}

/** Return a card of any sample of the data set; one of the analysed split opens the dialog. */
function sampleCard(split, key, ...lines) {
  const row = split === SPLIT ? rowOf(key) : -1;
  const attributes = { class: "card", title: `${split}: ${key}` };
  if (row < 0) return el("div", attributes, imageFrame(split, key, key), lines);
  return el("button", { ...attributes, type: "button", onclick: () => openSheet([row], 0) }, imageFrame(split, key, key), lines);
}

/** Return the row of a key, or -1. A map, since keys are sorted by bytes, which JavaScript orders differently. */
const rowOf = (() => {
  let rows = null;
  return (key) => {
    rows ||= new Map(SAMPLES.keys.map((one, row) => [one, row]));
    return rows.has(key) ? rows.get(key) : -1;
  };
})();

function keysAsText(places) {
  const area = el("textarea", { readonly: true, rows: 8, "aria-label": "Keys", spellcheck: "false" });
  const opened = el("details", { class: "more", ontoggle: () => { area.value = places.map(({ split, key, label, suggested }) => [split, key, label, suggested].filter((part) => part !== undefined).join("\t")).join("\n"); } }, el("summary", {}, "As text"), area);
  return opened;
}

function makeDuplicates() {
  const body = bodyOf("duplicates"), { groups, found, across, conflicts, leaked, compared, measure, note: how } = DATA.duplicates;
  body.append(el("p", { class: "lead" }, coded(how)));
  if (!groups.length) return body.append(empty(`No duplicates among ${plural(compared, "image")} of all splits.`));
  const leaks = Object.entries(leaked).filter(([, count]) => count).map(([split, count]) => `${whole(count)} of ${split}`).join(" and ");
  const facts = [`${plural(found, "group")} of duplicate images`, across ? `${whole(across)} across splits` : "none across splits", conflicts ? `${whole(conflicts)} with different labels` : "none with different labels"];
  body.append(el("p", { class: across || conflicts ? "bad" : "" }, `${facts.join(", ")}${leaks ? `; ${leaks} have a duplicate in the training split` : ""}.`));
  const keep = { all: () => true, across: (one) => one.across, conflict: (one) => one.conflict };
  const place = el("div"), view = paged(place, 12, (part) => el("div", { class: "pairs" }, part.map(duplicateCard)));
  if (across && conflicts < found && across < found || conflicts && conflicts < found) {
    const kinds = [["all", "All"], ...(across ? [["across", "Across splits"]] : []), ...(conflicts ? [["conflict", "Different labels"]] : [])];
    const bar = el("div", { class: "tabs", role: "group", "aria-label": "Which groups" }, kinds.map(([kind, text]) => el("button", { type: "button", "aria-pressed": String(kind === "all"), onclick: (event) => {
      for (const button of bar.children) button.setAttribute("aria-pressed", String(button === event.currentTarget));
      view.show(groups.filter(keep[kind]));
    } }, text)));
    body.append(bar);
  }
  body.append(place, keysAsText(groups.flatMap((one) => one.samples)));
  view.show(groups);
  if (measure) body.append(note(`Difference: ${measure}.`));
}

const KINDS = { bytes: "same file", pixels: "same pixels", near: "near-duplicate" };

function duplicateCard(one) {
  const more = one.samples.length - 4;
  return el("div", { class: "pair" },
    el("div", { class: "bar" }, el("span", { class: "tag" }, KINDS[one.kind]), one.turned && el("span", { class: "tag" }, "rotated or mirrored"), one.across && el("span", { class: "tag bad" }, "across splits"), one.conflict && el("span", { class: "tag bad" }, "different labels"),
      one.kind === "near" && el("span", { class: "muted spread" }, `difference ${short(one.difference)}`)),
    el("div", { class: "two" }, one.samples.slice(0, 4).map((sample) => sampleCard(sample.split, sample.key,
      el("span", { class: "line" }, el("span", { class: "name", title: sample.label }, sample.label), el("span", { class: "tag" }, sample.split)),
      el("span", { class: "name muted key", title: sample.key }, sample.key)))),
    more > 0 && note(`and ${plural(more, "more", "more")}`));
}

/** Whether a quantity differs between images. */
function varies(quantity) {
  const ends = Object.values(quantity.splits).flatMap(({ quantiles }) => [quantiles[0], quantiles[quantiles.length - 1]]);
  return Math.min(...ends) < Math.max(...ends);
}

const SPLIT_STYLES = ["", "one", "two"];

function makeHealth() {
  const body = bodyOf("health"), health = DATA.health, splits = Object.keys(health.samples);
  if (health.notes.length) body.append(el("ul", { class: "notes" }, health.notes.map((text) => el("li", {}, text))));
  body.append(healthTable(health, splits));
  const varied = health.quantities.filter(varies);
  if (varied.length) {
    body.append(el("h3", {}, "Images"), el("p", { class: "hint legend" }, splits.slice(0, 3).map((split, number) => [el("span", { class: `swatch ${SPLIT_STYLES[number]}` }), split])));
    body.append(el("div", { class: "small-charts" }, varied.map((one) => quantityChart(one, splits))));
  }
  if (Object.keys(health.class_counts).length) body.append(el("h3", {}, TASK === "multilabel" ? "Label balance" : "Class balance"), balance(health, splits));
  if (health.outliers.length) {
    const place = el("div");
    body.append(el("h3", {}, "Most unusual images"), place);
    paged(place, 12, (part) => el("div", { class: "cards" }, part.map((one) => sampleCard(one.split, one.key,
      el("span", { class: "line" }, el("span", { class: "name" }, el("i", {}, `${one.quantity} `), short(one.value))),
      el("span", { class: "name muted" }, `usual: ${short(one.low)} to ${short(one.high)}`),
      el("span", { class: "line foot" }, el("span", { class: "name muted key", title: one.key }, one.key), el("span", { class: "tag" }, one.split)))))).show(health.outliers);
  }
  for (const [title, listed, count] of [["Unreadable images", health.unreadable, health.unreadable_found], ["Constant images", health.constant, health.constant_found]]) {
    if (!count) continue;
    const place = el("div", { class: "wide" });
    body.append(el("h3", {}, `${title}: ${whole(count)}`), place);
    paged(place, 10, (part) => el("table", {}, el("thead", {}, el("tr", {}, el("th", {}, "Split"), el("th", {}, "Key"), el("th", {}, "Reason"))), el("tbody", {}, part.map((one) => el("tr", {}, el("td", {}, one.split), el("td", { class: "key" }, one.key), el("td", {}, one.reason)))))).show(listed);
  }
}

function healthTable(health, splits) {
  const quartile = (quantity, split, place) => quantity.splits[split] && short(quantity.splits[split].quantiles[place]);
  const rows = splits.map((split) => el("tr", {}, el("th", { scope: "row" }, split), el("td", { class: "number" }, whole(health.samples[split])),
    el("td", { class: "narrow-off" }, Object.entries(health.formats[split] || {}).map(([format, count]) => `${format} ${whole(count)}`).join(", ")),
    health.quantities.slice(0, 3).map((one) => el("td", { class: "number" }, one.splits[split] ? [quartile(one, split, 3), varies(one) && el("span", { class: "muted narrow-off" }, ` ${quartile(one, split, 0)} to ${quartile(one, split, 6)}`)] : "–"))));
  return el("div", { class: "wide" }, el("table", {}, el("thead", {}, el("tr", {}, el("th", {}, "Split"), el("th", { class: "number" }, "Samples"), el("th", { class: "narrow-off" }, "Format"), health.quantities.slice(0, 3).map((one) => el("th", { class: "number" }, `${one.name}${one.unit ? `, ${one.unit}` : ""}`)))), el("tbody", {}, rows)));
}

function quantityChart(one, splits) {
  const drifted = one.drift.filter((drift) => drift.significant);
  const series = splits.slice(0, 3).map((name, number) => ({ name, style: SPLIT_STYLES[number], counts: one.splits[name]?.counts || [] })).filter((own) => own.counts.length);
  const hint = drifted.length ? `differs from training: ${drifted.map((drift) => `${drift.split} (distance ${drift.distance.toFixed(2)}, p ${pValue(drift.p_adjusted)})`).join(", ")}` : one.unit;
  return histogram({ title: one.name, hint, edges: one.edges, series });
}

/** Return the share of each class in each split as bars, most frequent classes first. */
function balance(health, splits) {
  const sums = Object.fromEntries(splits.map((split) => [split, health.samples[split] || 1]));
  const share = (split, id) => (health.class_counts[split]?.[id] ?? 0) / sums[split];
  const first = splits.find((split) => health.class_counts[split]) || splits[0], order = [...CLASSES.keys()].sort((one, other) => share(first, other) - share(first, one));
  const largestShare = Math.max(...splits.flatMap((split) => order.map((id) => share(split, id))), 1e-9);
  const place = el("div");
  paged(place, 12, (part) => el("div", { class: "wide" }, el("table", {}, el("thead", {}, el("tr", {}, el("th", {}, ""), splits.map((split) => el("th", { class: "number" }, split)))), el("tbody", {}, part.map((id) => el("tr", {}, el("th", { scope: "row" }, CLASSES[id]), splits.map((split) => {
    const fill = el("div", { class: "fill" });
    fill.style.width = `${(100 * share(split, id)) / largestShare}%`;
    return el("td", {}, el("div", { class: "share" }, el("div", { class: "track" }, fill), el("span", {}, whole(health.class_counts[split]?.[id] ?? 0)), el("span", { class: "muted narrow-off" }, percent(share(split, id)))));
  }))))))).show(order);
  return place;
}
