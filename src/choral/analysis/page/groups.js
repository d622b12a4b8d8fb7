// Tables of classes and slices: samples, metric, difference to all other samples, adjusted p value.

const GROUPS = DATA.groups;
const ROWS_OF_GROUPS = 25;

function makeGroups() {
  const body = bodyOf("groups"), tables = [[`By ${TASK === "multiclass" ? "class" : TASK === "multilabel" ? "label" : "target"}`, GROUPS.classes]];
  for (const [column, groups] of Object.entries(GROUPS.slices)) tables.push([`By ${column}`, groups]);
  for (const [title, groups] of tables) if (groups.length) body.append(groupTable(title, groups));
  body.append(note(GROUPS.note));
  for (const [column, reason] of Object.entries(GROUPS.left_out)) body.append(el("p", { class: "note" }, el("code", {}, column), ` is left out: ${reason}.`));
}

/** Return a table of groups; a click on a heading sorts it. */
function groupTable(title, groups) {
  const compared = groups.some((group) => group.difference), detail = detailNames(groups);
  const place = el("div", { class: "groups" }, el("h3", {}, title)), rest = el("div");
  const ends = groups.flatMap((group) => (group.score ? [group.score.low, group.score.high] : []));
  const scale = { low: Math.min(...ends), high: Math.max(...ends) };
  if (scale.high === scale.low) { scale.low -= 0.5; scale.high += 0.5; }
  const all = overall(groups), unit = GROUPS.percent ? " %" : "";
  const columns = [
    { name: "", key: (group) => group.value, cell: (group) => el("td", {}, nameOf(group)) },
    { name: "Samples", number: true, key: (group) => group.n, cell: (group) => el("td", { class: "number" }, whole(group.n)) },
  ];
  if (ends.length) {
    columns.push({ name: GROUPS.metric + unit, number: true, key: (group) => group.score?.value ?? NaN, cell: (group) => el("td", { class: "number" }, group.score ? inUnit(group.score.value, GROUPS.percent) : "–") });
    columns.push({ name: "95 % interval", wide: true, cell: (group) => el("td", { class: "narrow-off" }, group.score && interval(group.score, all, scale, kindOf(group))) });
  }
  if (compared) {
    columns.push({ name: `Difference to the rest${unit ? ", points" : ""}`, number: true, key: (group) => group.difference?.value ?? NaN, cell: differenceCell });
    columns.push({ name: "p, adjusted", number: true, key: (group) => group.p_adjusted ?? 2, cell: (group) => el("td", { class: `number ${group.significant ? kindOf(group).includes("better") ? "good" : "bad" : "muted"}` }, pValue(group.p_adjusted)) });
  }
  for (const name of detail) columns.push({ name: name.replaceAll("_", " "), number: true, wide: true, key: (group) => group.details[name]?.value ?? NaN, cell: (group) => detailCell(group.details[name], name) });
  const view = paged(rest, ROWS_OF_GROUPS, (part) => el("div", { class: "wide" }, el("table", {}, el("thead", {}, heads()), el("tbody", {}, part.map((group) => el("tr", {}, columns.map((column) => column.cell(group))))))));
  let sorted = { column: null, down: false };
  const heads = () => el("tr", {}, columns.map((column) => el("th", { scope: "col", class: [column.number && "number", column.wide && "narrow-off"].filter(Boolean).join(" "), "aria-sort": sorted.column === column ? (sorted.down ? "descending" : "ascending") : null },
    column.key ? el("button", { type: "button", onclick: () => sort(column) }, (column.name || "Name") + (sorted.column === column ? (sorted.down ? " ↓" : " ↑") : "")) : column.name)));
  function sort(column) {
    sorted = { column, down: sorted.column === column ? !sorted.down : false };
    const sign = sorted.down ? -1 : 1;
    const compare = (one, other) => {
      const [a, b] = [column.key(one), column.key(other)];
      if (typeof a === "string") return sign * COLLATOR.compare(a, b);
      return (Number.isNaN(a) - Number.isNaN(b)) || sign * (a - b);
    };
    view.show([...groups].sort(compare));
  }
  view.show(groups.length > ROWS_OF_GROUPS ? [...groups].sort((one, other) => (one.p_adjusted ?? 2) - (other.p_adjusted ?? 2) || (one.score?.value ?? 0) - (other.score?.value ?? 0)) : groups);
  place.append(rest);
  return place;
}

const detailNames = (groups) => [...new Set(groups.flatMap((group) => Object.keys(group.details)))].filter((name) => name !== GROUPS.metric && groups.some((group) => group.details[name])).slice(0, 4);

/** Return the mean of the metric over all samples, given the groups of one column; null unless multiclass. */
function overall(groups) {
  const scored = groups.filter((group) => group.score), n = scored.reduce((sum, group) => sum + group.n, 0);
  return TASK === "multiclass" && n ? scored.reduce((sum, group) => sum + group.n * group.score.value, 0) / n : null;
}

function kindOf(group) {
  if (!group.significant || !group.difference) return "";
  return (group.difference.value > 0) === GROUPS.higher_is_better ? "significant better" : "significant";
}

function nameOf(group) {
  const tag = group.significant && group.difference && el("span", { class: `tag ${kindOf(group).includes("better") ? "good" : "bad"}` }, kindOf(group).includes("better") ? "better" : "worse");
  return [groupLink(group), tag && " ", tag];
}

/** Return the name of a group, as a button that filters the list of samples where possible. */
function groupLink(group) {
  let filters = null;
  if (SAMPLES.slices[group.column]) {
    const code = SAMPLES.slices[group.column].values.indexOf(group.value);
    if (code >= 0) filters = { column: group.column, slice: String(code) };
  }
  if (group.column === "class" || group.column === "label") {
    const id = CLASSES.indexOf(group.value);
    if (id >= 0 && TASK !== "regression") filters = { truth: String(id) };
  }
  if (!filters) return group.value;
  return el("button", { class: "link", type: "button", onclick: () => explore({ ...NOTHING, tab: "loss", ...filters }, true) }, group.value);
}

function differenceCell(group) {
  if (!group.difference) return el("td", { class: "number" }, "–");
  const { value, low, high } = group.difference, text = (number) => signed(inUnit(number, GROUPS.percent), number);
  return el("td", { class: "number", title: `95 % interval ${text(low)} to ${text(high)}` }, text(value), " ", el("span", { class: "muted narrow-off" }, `[${text(low)}, ${text(high)}]`));
}

function detailCell(numbers, name) {
  if (!numbers) return el("td", { class: "number narrow-off" }, "–");
  const share = !["rmse", "mae", "r2", "spearman", "log_loss"].includes(name), text = (number) => (share ? (100 * number).toFixed(1) : short(number));
  return el("td", { class: "number narrow-off", title: `95 % interval ${text(numbers.low)} to ${text(numbers.high)}` }, text(numbers.value));
}
