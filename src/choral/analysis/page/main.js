// Builds the summary, then every other section.

function makeSummary() {
  const body = bodyOf("summary");
  body.append(el("div", { class: "figures" }, DATA.summary.map((one) => {
    const text = (number) => (one.percent ? (100 * number).toFixed(1) : short(number));
    return el("div", {}, el("div", { class: "name" }, one.name.replace(/ %$/, "")), el("div", { class: "value" }, text(one.value), one.percent && el("small", {}, "%")), el("div", { class: "ends" }, `${text(one.low)} to ${text(one.high)}`));
  })));
  if (DATA.highlights.length) {
    body.append(el("h3", {}, "Findings"), el("ul", { class: "first" }, DATA.highlights.map(({ tone, section, text }) => el("li", {}, el("a", { href: `#${section}` }, el("span", { class: `dot ${tone}` }), el("span", {}, coded(text)))))));
  }
}

/** Mark the current section in the table of contents; on a phone, close it after a click. */
function followReading() {
  const links = new Map([...document.querySelectorAll("nav a")].map((link) => [link.hash.slice(1), link]));
  const contents = document.querySelector("nav details"), sections = [...document.querySelectorAll("main section")];
  for (const link of links.values()) link.addEventListener("click", () => { contents.open = false; });
  const mark = () => {
    const line = innerHeight * 0.3, current = sections.findLast((section) => section.getBoundingClientRect().top < line) || sections[0];
    for (const [id, link] of links) {
      if (id === current.id) link.setAttribute("aria-current", "true");
      else link.removeAttribute("aria-current");
    }
  };
  let waiting = false;
  addEventListener("scroll", () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => { waiting = false; mark(); });
  }, { passive: true });
  mark();
}

makeSummary();
makeExplorer();
makeConfusion();
makeGroups();
makeCurves();
makeProbes();
makeAdvice();
makeLabelErrors();
makeDuplicates();
makeHealth();
followReading();
document.documentElement.dataset.ready = "true";
