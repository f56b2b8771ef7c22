"use strict";
// Sorting of tables, the gallery and the map. All text goes in as text, never as markup.

const parsed = new Map();

function read(id) {
  if (!parsed.has(id)) parsed.set(id, JSON.parse(document.getElementById(id).textContent));
  return parsed.get(id);
}

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

/* Tables */

const sizes = new ResizeObserver((entries) => {
  for (const { target } of entries) {
    target.classList.toggle("wide", target.scrollWidth > target.clientWidth + 1);
  }
});
for (const box of document.querySelectorAll(".scroll")) sizes.observe(box);

function sortKey(row, column) {
  const cell = row.cells[column];
  if (!("key" in cell.dataset) || cell.className === "words") return cell.textContent;
  return cell.dataset.key === "" ? NaN : Number(cell.dataset.key);
}

function compareKeys(a, b, sign) {
  if (typeof a === "string") return sign * a.localeCompare(b, "en", { numeric: true });
  if (Number.isNaN(a) || Number.isNaN(b)) return Number.isNaN(a) - Number.isNaN(b);
  return sign * (a - b);
}

function sortBy(table, column) {
  const headers = [...table.tHead.rows[0].cells];
  const before = headers[column].getAttribute("aria-sort");
  // Figures first from the greatest, words from A.
  const words = column === 0 || headers[column].className === "words";
  const [first, other] = words ? ["ascending", "descending"] : ["descending", "ascending"];
  const order = before === first ? other : first;
  for (const header of headers) header.setAttribute("aria-sort", "none");
  headers[column].setAttribute("aria-sort", order);
  const sign = order === "ascending" ? 1 : -1;
  const keyed = [...table.tBodies[0].rows].map((row) => [sortKey(row, column), row]);
  keyed.sort(([a], [b]) => compareKeys(a, b, sign));
  table.classList.add("sorted");
  table.tBodies[0].append(...keyed.map(([, row]) => row));
}

function makeSortable(table) {
  table.tHead.querySelectorAll("button").forEach((button, column) => {
    button.addEventListener("click", () => sortBy(table, column));
  });
}

/* Pictures of an album: { classes, labels, names, pictures } */

function className(album, image) {
  return album.classes[album.labels[image]];
}

function picture(album, image, words) {
  const source = album.pictures[image];
  const title = `${className(album, image)}: ${album.names[image]}`;
  if (!source) return element("span", { class: "blank", role: "img", "aria-label": words, title });
  return element("img", {
    src: `data:image/webp;base64,${source}`, alt: words, title, width: 112, height: 112,
  });
}

function fillClasses(select, album, classes, firstWords) {
  select.append(element("option", { value: "" }, firstWords));
  for (const number of classes) {
    select.append(element("option", { value: number }, album.classes[number]));
  }
}

// Long names may break after an underscore or a slash.
function breakable(name) {
  return name.split(/(?<=[_/])/).flatMap((part, n) => (n ? [element("wbr"), part] : [part]));
}

/* Gallery */

function neighbour(album, query, image) {
  const right = album.labels[image] === album.labels[query];
  const words = `${right ? "right" : "wrong"}: ${className(album, image)}, ${album.names[image]}`;
  const mark = element("span", { class: "mark", "aria-hidden": "true" }, right ? "✓" : "✗");
  return element("li", { class: right ? "right" : "wrong" }, picture(album, image, words), mark);
}

function answers(album, query, row, number) {
  const share = Math.round(100 * query.found[number]);
  const heading = element("p", { class: "row" },
    element("strong", {}, row.label), ` ${row.run}; right in ${share} % of runs`);
  const found = query.nearest[number].map((image) => neighbour(album, query.image, image));
  return element("div", { class: "answers" }, heading, element("ol", {}, ...found));
}

function queryCard(album, query, rows, shown) {
  const name = className(album, query.image);
  const caption = element("figcaption", {}, element("strong", {}, ...breakable(name)), element("br"),
    ...breakable(album.names[query.image]), element("br"), query.reason);
  return element("article", { class: "query", "aria-label": `Query: ${name}` },
    element("figure", {}, picture(album, query.image, `query: ${name}`), caption),
    element("div", { class: "rows" }, ...shown.map((n) => answers(album, query, rows[n], n))));
}

function makeGallery(place) {
  const data = read(`${place.dataset.source}-data`);
  const album = read(data.images);
  const { queries, rows, classes, hardest } = data.gallery;
  const select = place.querySelector("select");
  const boxes = [...place.querySelectorAll("input")];
  fillClasses(select, album, classes, `the ${hardest} hardest queries of all classes`);

  function update() {
    const shown = boxes.filter((box) => box.checked).map((box) => Number(box.value));
    const chosen = select.value === ""
      ? queries.slice(0, hardest)
      : queries.filter((query) => album.labels[query.image] === Number(select.value));
    const cards = chosen.map((query) => queryCard(album, query, rows, shown));
    place.querySelector(".queries").replaceChildren(...cards);
    const status = `${chosen.length} queries, ${shown.length} of ${rows.length} losses`;
    place.querySelector(".status").textContent = status;
  }

  select.addEventListener("change", update);
  boxes.forEach((box) => box.addEventListener("change", update));
  update();
}

/* Map */

const SVG = "http://www.w3.org/2000/svg";
const CROSS = "M-6-6L6 6M-6 6L6-6";
const DOT = "M0-6a6 6 0 1 0 .01 0z";

function dot(album, image, right) {
  const made = document.createElementNS(SVG, "path");
  const hue = Math.round((album.labels[image] * 137.5) % 360);
  made.setAttribute("d", right ? DOT : CROSS);
  made.setAttribute("class", right ? "right" : "wrong");
  made.setAttribute("tabindex", "-1");
  made.setAttribute("role", "img");
  made.setAttribute("aria-label", `${className(album, image)}, ${right ? "right" : "wrong"}`);
  made.style.setProperty("--hue", hue);
  return made;
}

function makeMap(place) {
  const data = read(`${place.dataset.source}-data`);
  const album = read(data.images);
  const { points, maps } = data.map;
  const svg = place.querySelector("svg:not(.swatch)[role=group]");
  const card = place.querySelector(".card");
  const select = place.querySelector("select");
  const classes = [...new Set(points.map((image) => album.labels[image]))].sort((a, b) => a - b);
  let dots = [];
  let current = 0;
  fillClasses(select, album, classes, "no class");

  function show(index) {
    const image = points[index];
    const words = dots[index].getAttribute("aria-label");
    const [x, y] = dots[index].place;
    card.replaceChildren(picture(album, image, words), element("span", {}, ...breakable(words)));
    card.style.left = `${x / 10}%`;
    card.style.top = `${y / 10}%`;
    card.classList.toggle("leftwards", x > 500);
    card.classList.toggle("upwards", y > 500);
    card.hidden = false;
  }

  function go(index) {
    dots[current].setAttribute("tabindex", "-1");
    current = (index + dots.length) % dots.length;
    dots[current].setAttribute("tabindex", "0");
    dots[current].focus();
  }

  // Points lie class by class, so the next class begins where the label changes.
  function nextClass(step) {
    const here = album.labels[points[current]];
    let index = current;
    while (points[index] !== undefined && album.labels[points[index]] === here) index += step;
    return index;
  }

  function highlight() {
    const chosen = select.value === "" ? null : Number(select.value);
    dots.forEach((each, index) => {
      const faded = chosen !== null && album.labels[points[index]] !== chosen;
      each.classList.toggle("faded", faded);
      if (!faded && chosen !== null) svg.append(each);
    });
  }

  function update() {
    const chosen = maps[Number(place.querySelector("input:checked").value)];
    dots = points.map((image, index) => {
      const made = dot(album, image, chosen.right[index] === 1);
      made.place = chosen.places[index];
      made.index = index;
      made.setAttribute("transform", `translate(${made.place.join(" ")})`);
      return made;
    });
    svg.replaceChildren(...dots);
    dots[current].setAttribute("tabindex", "0");
    card.hidden = true;
    highlight();
    const right = chosen.right.filter((each) => each === 1).length;
    place.querySelector(".status").textContent =
      `${chosen.label}, ${chosen.run}: ${points.length} images, ${right} with a right nearest image`;
  }

  const steps = {
    ArrowRight: () => current + 1, ArrowLeft: () => current - 1,
    ArrowDown: () => nextClass(1), ArrowUp: () => nextClass(-1),
  };
  svg.addEventListener("keydown", (event) => {
    if (event.key === "Escape") card.hidden = true;
    if (!(event.key in steps)) return;
    event.preventDefault();
    go(steps[event.key]());
  });
  for (const kind of ["pointerover", "focusin"]) {
    svg.addEventListener(kind, (event) => {
      if (event.target.index !== undefined) show(event.target.index);
    });
  }
  svg.addEventListener("focusout", () => { card.hidden = true; });
  // A page that scrolls under a resting pointer must not take away what a key has shown.
  svg.addEventListener("pointerleave", () => {
    const focused = document.activeElement.index;
    if (svg.contains(document.activeElement) && focused !== undefined) show(focused);
    else card.hidden = true;
  });
  select.addEventListener("change", highlight);
  place.querySelectorAll("input").forEach((input) => input.addEventListener("change", update));
  update();
}

/* A part is made when it comes near: a page of many comparisons opens at once. */

const pending = new Map();
const observer = new IntersectionObserver((entries) => {
  for (const entry of entries) if (entry.isIntersecting) makeNow(entry.target);
}, { rootMargin: "800px" });

function makeNow(place) {
  const make = pending.get(place);
  pending.delete(place);
  observer.unobserve(place);
  if (make) make(place);
}

function makeLater(selector, make) {
  for (const place of document.querySelectorAll(selector)) {
    pending.set(place, make);
    observer.observe(place);
  }
}

document.querySelectorAll("table.sortable").forEach(makeSortable);
makeLater(".gallery", makeGallery);
makeLater(".map", makeMap);

// Paper has no summaries to open, and nothing comes near later.
const opened = new Set();
window.addEventListener("beforeprint", () => {
  [...pending.keys()].forEach(makeNow);
  document.querySelectorAll("details:not([open])").forEach((each) => {
    opened.add(each);
    each.open = true;
  });
});
window.addEventListener("afterprint", () => {
  opened.forEach((each) => { each.open = false; });
  opened.clear();
});
