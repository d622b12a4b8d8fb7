"use strict";
// Shared by the scripts of all pages: data, elements, number formats. Text from data becomes text nodes, never markup.

const DATA = JSON.parse(document.getElementById("data").textContent);
const ARRAYS = { i2: Int16Array, i4: Int32Array, u1: Uint8Array, u2: Uint16Array, u4: Uint32Array, f4: Float32Array };

/** Decode base64 to bytes. */
function bytesOf(text) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(text);
  const letters = atob(text), bytes = new Uint8Array(letters.length);
  for (let place = 0; place < bytes.length; place++) bytes[place] = letters.charCodeAt(place);
  return bytes;
}

/** Return the typed array that `choral.analysis.page.page_data.encode_array` encoded; little-endian, as all browsers' machines are. */
function unpacked(column) {
  return column && new ARRAYS[column.type](bytesOf(column.data).buffer);
}

/** Return a new element with attributes, listeners ("on...") and children; children that are not nodes become text. */
function el(tag, attributes, ...children) {
  const space = SVG_TAGS.has(tag) ? "http://www.w3.org/2000/svg" : "http://www.w3.org/1999/xhtml";
  const made = document.createElementNS(space, tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return made;
}
const SVG_TAGS = new Set(["svg", "path", "line", "circle", "rect", "text", "g", "polyline", "title"]);

const bodyOf = (id) => document.querySelector(`#${id} .body`);
const note = (text) => el("p", { class: "note" }, coded(sentence(text)));
const empty = (text) => el("p", { class: "empty" }, coded(text));
/** Return text with a capital first letter and a full stop. */
const sentence = (text) => text && text[0].toUpperCase() + text.slice(1) + (/[.!?:]$/.test(text) ? "" : ".");
/** Return text whose parts between backticks are code. */
const coded = (text) => text.split("`").map((part, place) => (place % 2 ? el("code", {}, part) : part));

// Number formats.
const whole = (number) => Math.round(number).toLocaleString("en");
const percent = (share, digits = 1) => `${(100 * share).toFixed(digits)} %`;
const sure = (share) => (share > 0.995 && share < 1 ? "> 99 %" : share < 0.005 && share > 0 ? "< 1 %" : percent(share, 0));
const short = (number) => (number === 0 ? "0" : Number(number.toPrecision(Math.abs(number) >= 1000 ? 4 : 3)).toLocaleString("en", { maximumSignificantDigits: 4 }));
const pValue = (p) => (p === null || p === undefined ? "–" : p < 0.001 ? "< 0.001" : p.toFixed(3));
const plural = (count, word, several) => `${whole(count)} ${count === 1 ? word : several || `${word}s`}`;
const signed = (text, number) => (number > 0 ? `+${text}` : number < 0 ? `−${text.replace("-", "")}` : text);

/** Format a value of the metric of the groups, without its unit. */
const inUnit = (value, isPercent) => (isPercent ? (100 * value).toFixed(1) : short(value));

/** Orders texts with numbers naturally: 9 before 10. */
const COLLATOR = new Intl.Collator("en", { numeric: true });

/** Return a control below its label. */
function labelled(label, control) {
  control.id = `control-${++labelled.count}`;
  return el("div", { class: "field" }, el("label", { for: control.id }, label), control);
}
labelled.count = 0;

/** Return a select with a label; options are [value, text]. */
function choice(label, options, onchange) {
  const select = el("select", { onchange: () => onchange(select.value) });
  for (const [value, text] of options) select.append(el("option", { value }, text));
  return { select, field: labelled(label, select) };
}

/** Show a list page by page: `draw(items, first)` returns the node of the items of a page. */
function paged(place, size, draw) {
  const content = el("div"), position = el("span", { "aria-live": "polite" });
  const back = el("button", { class: "button", type: "button", onclick: () => turn(-1) }, "Previous");
  const forth = el("button", { class: "button", type: "button", onclick: () => turn(1) }, "Next");
  const bar = el("div", { class: "pager" }, back, position, forth);
  let items = [], first = 0;
  place.append(content, bar);
  function turn(by) {
    first = Math.max(0, Math.min(first + by * size, items.length - 1));
    update();
    const top = content.getBoundingClientRect().top;
    if (top < 0 || top > innerHeight) content.parentElement.scrollIntoView({ block: "start" });
  }
  function update() {
    const last = Math.min(first + size, items.length);
    content.replaceChildren(draw(Array.prototype.slice.call(items, first, last), first));
    position.textContent = items.length ? `${whole(first + 1)} to ${whole(last)} of ${whole(items.length)}` : "";
    back.disabled = first === 0;
    forth.disabled = last >= items.length;
    bar.hidden = items.length <= size;
  }
  return { show(list) { items = list; first = 0; update(); } };
}

/** Call `draw(width)` now and whenever the width of an element changes. */
function onWidth(element, draw) {
  let width = 0;
  new ResizeObserver(() => {
    const now = Math.round(element.clientWidth);
    if (now && now !== width) draw((width = now));
  }).observe(element);
}
