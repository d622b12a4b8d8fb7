// Charts as SVG, in the colours of the style sheet: curves with bands, histograms, intervals.

/** Return round numbers that hold [low, high], a little wider, and ticks. */
function roundScale(low, high, most = 5) {
  const span = Math.max(high - low, 1e-9);
  let step = 10 ** Math.floor(Math.log10(span / 4));
  step *= [1, 2, 5, 10].find((factor) => span / (step * factor) <= most) || 10;
  const first = Math.floor(low / step + 1e-9), last = Math.max(first + 1, Math.ceil(high / step - 1e-9));
  const ticks = [];
  for (let number = first; number <= last; number++) ticks.push(Number((number * step).toPrecision(12)));
  return { low: first * step, high: last * step, ticks };
}

/** Return a chart: title, a hint below it, and a drawing that follows its width. `draw(chart)` adds elements with `chart.add`. */
function chart({ title, hint, x, y, height = 240, label, xTitle, yTitle, draw }) {
  const place = el("div");
  const whole = el("figure", { class: "chart" }, title && el("h3", {}, title), hint !== undefined && el("p", { class: "hint", title: hint }, hint), place);
  const left = yTitle === undefined ? 34 : 44, right = 10, top = 8, bottom = xTitle ? 40 : 24;
  onWidth(place, (width) => {
    const wide = width - left - right, high = height - top - bottom;
    const svg = el("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": label || title });
    const at = (value) => left + ((value - x.low) / (x.high - x.low)) * wide;
    const up = (value) => top + high - ((value - y.low) / (y.high - y.low)) * high;
    for (const tick of y.ticks) {
      svg.append(el("line", { class: "grid", x1: left, x2: left + wide, y1: up(tick), y2: up(tick) }));
      svg.append(el("text", { x: left - 7, y: up(tick) + 4, "text-anchor": "end" }, (y.text || short)(tick)));
    }
    for (const tick of thinned(x.ticks.filter((one) => one >= x.low && one <= x.high), wide))
      svg.append(el("text", { x: at(tick), y: top + high + 17, "text-anchor": "middle" }, (x.text || short)(tick)));
    svg.append(el("line", { class: "zero", x1: left, x2: left + wide, y1: top + high, y2: top + high }));
    if (xTitle) svg.append(el("text", { x: left + wide / 2, y: height - 4, "text-anchor": "middle" }, xTitle));
    if (yTitle) svg.append(el("text", { transform: `translate(11 ${top + high / 2}) rotate(-90)`, "text-anchor": "middle" }, yTitle));
    draw({ svg, at, up, left, top, wide, high, add: (...parts) => svg.append(...parts) });
    place.replaceChildren(svg);
  });
  return whole;
}

/** Return few enough ticks that their labels do not overlap. */
function thinned(ticks, wide) {
  const every = Math.max(1, Math.ceil((ticks.length * 40) / Math.max(wide, 1)));
  return ticks.filter((_, number) => number % every === 0);
}

const line = (points) => points.map(([x, y]) => `${x.toFixed(1)},${y.toFixed(1)}`).join(" ");

/** Draw a curve with its band: points are {x, value, low, high}. */
function curve({ at, up, add }, points) {
  const upper = points.map((one) => [at(one.x), up(one.high)]);
  const lower = points.map((one) => [at(one.x), up(one.low)]).reverse();
  add(el("path", { class: "band", d: `M${line([...upper, ...lower])}Z` }));
  add(el("polyline", { class: "curve", points: line(points.map((one) => [at(one.x), up(one.value)])) }));
}

/** Return an interval as a small drawing: a line for all samples, a bar from low to high, a mark. */
function interval(numbers, all, scale, kind) {
  const at = (value) => `${(100 * (value - scale.low)) / (scale.high - scale.low)}%`;
  const text = `${numbers.value} from ${numbers.low} to ${numbers.high}`;
  return el("svg", { class: `interval ${kind}`, role: "img", "aria-label": text },
    all !== null && el("line", { class: "all", x1: at(all), x2: at(all), y1: 0, y2: 18 }),
    el("line", { class: "range", x1: at(numbers.low), x2: at(numbers.high), y1: 9, y2: 9 }),
    el("circle", { class: "mark", cx: at(numbers.value), cy: 9, r: 4 }));
}

/** Return a histogram: series are {name, style, counts}, each normalised to shares. */
function histogram({ title, hint, edges, series, text }) {
  const shares = series.map(({ counts }) => { const sum = counts.reduce((a, b) => a + b, 0) || 1; return counts.map((one) => one / sum); });
  const y = { ...roundScale(0, Math.max(0.01, ...shares.flat()), 3), text: (tick) => `${Math.round(100 * tick)} %` };
  const ends = roundScale(edges[0], edges[edges.length - 1], 5);
  const x = { low: edges[0], high: edges[edges.length - 1], ticks: ends.ticks.filter((tick) => tick >= edges[0] && tick <= edges[edges.length - 1]), text };
  return chart({
    title, hint, x, y, height: 150, label: `Distribution of ${title}`,
    draw({ at, up, add }) {
      series.forEach(({ style }, number) => {
        const steps = [[at(edges[0]), up(0)]];
        shares[number].forEach((share, bin) => steps.push([at(edges[bin]), up(share)], [at(edges[bin + 1]), up(share)]));
        steps.push([at(edges[edges.length - 1]), up(0)]);
        add(el("polyline", { class: `outline ${style}`, points: line(steps) }));
      });
    },
  });
}
