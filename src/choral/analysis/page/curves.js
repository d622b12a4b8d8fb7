// Reliability, coverage and probe curves, and the advice.

const PERCENT_TICK = (tick) => `${Math.round(100 * tick)}`;

function makeCurves() {
  const body = bodyOf("trust"), charts = el("div", { class: "charts" });
  if (DATA.reliability.length) charts.append(reliabilityChart(DATA.reliability));
  if (DATA.coverage) charts.append(coverageChart(DATA.coverage));
  body.append(charts.children.length ? charts : empty("These predictions have no confidence: a single network predicts numbers."));
}

/** Return accuracy against predicted probability, with Wilson intervals. */
function reliabilityChart(bins) {
  const low = Math.min(...bins.map((bin) => Math.min(bin.low, bin.confidence))), x = roundScale(Math.max(0, low - 0.02), 1);
  const scale = { ...x, high: 1, ticks: x.ticks.filter((tick) => tick <= 1), text: PERCENT_TICK };
  return chart({
    title: "Reliability", hint: `${bins.length} bins of about ${whole(bins[0].n)} ${TASK === "multilabel" ? "predictions" : "samples"}; on the diagonal, confidence equals accuracy`, x: scale, y: scale, height: 300,
    xTitle: "confidence, %", yTitle: "accuracy, %",
    draw({ at, up, add }) {
      add(el("line", { class: "reference", x1: at(scale.low), y1: up(scale.low), x2: at(1), y2: up(1) }));
      for (const bin of bins) {
        const off = bin.confidence < bin.low || bin.confidence > bin.high;
        add(el("line", { class: "whisker", x1: at(bin.confidence), x2: at(bin.confidence), y1: up(bin.low), y2: up(bin.high) }),
          el("circle", { class: `point ${off ? "bad" : ""}`, cx: at(bin.confidence), cy: up(bin.right), r: 4 }, el("title", {}, `confidence ${percent(bin.confidence)}, accuracy ${percent(bin.right)} [${percent(bin.low)}, ${percent(bin.high)}], ${plural(bin.n, "sample")}`)));
      }
    },
  });
}

function coverageChart({ coverage, value, low, high, area }) {
  // A single sample has no band, so it is not drawn.
  const points = Array.from(coverage, (x, place) => ({ x, value: value[place], low: low[place], high: high[place] })).filter((one) => one.low !== null);
  const share = TASK !== "regression", ends = roundScale(Math.min(...points.map((one) => one.low)), Math.max(...points.map((one) => one.high)));
  const y = share ? { ...ends, high: Math.min(1, ends.high), ticks: ends.ticks.filter((tick) => tick <= 1), text: PERCENT_TICK } : ends;
  const first = Math.floor(10 * points[0].x) / 10;
  return chart({
    title: "Coverage", hint: share ? `Least confident left out${area === null ? "" : `; area under the risk-coverage curve ${area.toFixed(3)}`}` : "Least confident left out", x: { ...roundScale(first, 1, 6), low: first, high: 1, text: PERCENT_TICK }, y, height: 300,
    xTitle: "coverage, %", yTitle: share ? (TASK === "multilabel" ? "correct labels, %" : "accuracy, %") : "error",
    draw: (drawing) => curve(drawing, points),
  });
}

function makeProbes() {
  const body = bodyOf("probes");
  if (!DATA.probes) return body.append(empty(DATA.missing.probes));
  const { unperturbed, curves, metric } = DATA.probes, share = PROBE_SHARES.includes(metric);
  const points = curves.flatMap((one) => one.points);
  const ends = roundScale(Math.min(unperturbed.low, ...points.map((one) => one.low)), Math.max(unperturbed.high, ...points.map((one) => one.high)), 4);
  const y = share ? { ...ends, low: Math.max(0, ends.low), high: Math.min(1, ends.high), ticks: ends.ticks.filter((tick) => tick >= 0 && tick <= 1), text: PERCENT_TICK } : ends;
  const order = [...curves].sort((one, other) => largest(other).drop - largest(one).drop);
  body.append(el("div", { class: "small-charts" }, order.map((one) => probeChart(one, unperturbed, y, share))));
  body.append(note(`${metric.replaceAll("_", " ")}${share ? " in %" : ""} against strength, on ${whole(DATA.probes.n)} samples, predicted by ${DATA.probes.predictor} without test-time views. Dashed: unchanged images. ` +
    `The number beside each name is its largest drop${share ? " in points" : ""}; families are sorted by it. Drops are paired on the same samples. Marked drops are significant after Holm's correction for all ${whole(points.length)} points. A drop alone is no weakness: a 6 rotated by 180 degrees is a 9.`));
}
const PROBE_SHARES = ["accuracy", "mean_ap"];
const largest = ({ points }) => points.reduce((best, one) => (one.drop > best.drop ? one : best));

function probeChart(one, unperturbed, y, share) {
  const worst = largest(one), places = one.points.length > 1 ? one.points.map((point) => point.strength) : [0.5];
  const unit = (number) => (share ? `${(100 * number).toFixed(1)}` : short(number));
  const significant = one.points.some(isSignificant);
  // Strengths are drawn in equal steps: they grow by factors, and the first ones would overlap.
  const points = one.points.map((point, place) => ({ ...point, x: place + 1 }));
  const x = { low: 0, high: places.length + 0.3, ticks: [0, ...points.map((point) => point.x)], text: (tick) => (tick === 0 ? "–" : short(one.points[tick - 1].strength)) };
  const start = { x: 0, ...unperturbed };
  return chart({
    title: [one.family.replaceAll("_", " "), el("span", { class: `worst ${significant ? "bad" : ""}` }, worst.drop > 0 ? `−${unit(worst.drop)}` : "no drop")],
    hint: one.text, x, y, height: 150, label: `${one.family}: ${DATA.probes.metric} against strength`,
    xTitle: one.unit || undefined,
    draw(drawing) {
      const { add, at, up, left, wide } = drawing;
      add(el("line", { class: "reference", x1: left, x2: left + wide, y1: up(unperturbed.value), y2: up(unperturbed.value) }));
      curve(drawing, [start, ...points]);
      for (const point of points) add(el("circle", { class: `point ${significant && isSignificant(point) ? "bad" : ""}`, cx: at(point.x), cy: up(point.value), r: 3.5 },
        el("title", {}, `${short(point.strength)} ${one.unit}: ${unit(point.value)}, drop ${unit(point.drop)} [${unit(point.drop_low)}, ${unit(point.drop_high)}], p ${pValue(point.p_adjusted)}`)));
    },
  });
}
const isSignificant = (point) => point.drop > 0 && point.p_adjusted < 0.05;

function makeAdvice() {
  const body = bodyOf("advice"), advice = DATA.advice;
  if (!advice) return body.append(empty(DATA.missing.advice));
  body.append(el("p", { class: "lead" }, advice.note));
  if (advice.lines.length) {
    body.append(el("ol", { class: "advice" }, advice.lines.map((line) => el("li", {}, el("strong", {}, line.family), " ", el("code", {}, settings(line)), el("p", {}, line.reason)))));
    body.append(el("h3", {}, "Config"), el("pre", {}, el("code", {}, advice.yaml)));
  }
  if (advice.rejected.length) {
    body.append(el("details", { class: "more" }, el("summary", {}, `Not advised: ${advice.rejected.map((one) => one.family).join(", ")}`), el("dl", { class: "facts" }, advice.rejected.map((one) => fact(one.family, one.reason)))));
  }
}
const settings = (line) => Object.entries(line.settings).map(([key, value]) => `${key}: ${JSON.stringify(value)}`).join(", ");
