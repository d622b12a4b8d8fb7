// The summary, and everything else in the order of the page.

function makeSummary() {
  const body = bodyOf("summary");
  body.append(el("div", { class: "figures" }, DATA.summary.map((one) => {
    const text = (number) => (one.percent ? (100 * number).toFixed(1) : short(number));
    return el("div", {}, el("div", { class: "name" }, one.name.replace(/ %$/, "")), el("div", { class: "value" }, text(one.value), one.percent && el("small", {}, "%")), el("div", { class: "ends" }, `${text(one.low)} to ${text(one.high)}`));
  })));
  if (DATA.highlights.length) {
    body.append(el("h3", {}, "What to look at first"), el("ul", { class: "first" }, DATA.highlights.map(({ tone, section, text }) => el("li", {}, el("a", { href: `#${section}` }, el("span", { class: `dot ${tone}` }), el("span", {}, coded(text)))))));
  }
}

/** Mark the section that is read in the contents, and close them on a phone once one is chosen. */
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
