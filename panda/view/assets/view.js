"use strict";
// The page of the viewer: the list of slides, what is shown of one, and how it is moved.

const find = (id) => document.getElementById(id);
const stage = find("stage"), picture = find("picture"), whole = find("whole");
const at = { x: 0, y: 0, per: 1 }; // centre in level-0 px, and level-0 px per CSS px
let slides = [], rows = [], number = -1, shown = null, layers = {}, view = null, waiting = false, asked = 0;
const loader = new Loader(later, say);

// ---- what the page says

function say(message) {
  const list = find("messages").querySelector("ul");
  if (Array.from(list.children).some((item) => item.textContent === message)) return;
  const item = document.createElement("li");
  item.textContent = message;
  list.append(item);
  find("messages").hidden = false;
}

function silence() {
  find("messages").querySelector("ul").replaceChildren();
  find("messages").hidden = true;
}

function write(parent, tag, text, style) {
  const element = document.createElement(tag);
  element.textContent = text;
  if (style) element.className = style;
  parent.append(element);
  return element;
}

async function read(address) {
  const answer = await fetch(address, { cache: "no-store" });
  if (!answer.ok) throw new Error(await answer.text());
  return answer.json();
}

// ---- the list of slides

function listSlides(found) {
  find("title").textContent = found.title;
  document.title = found.title;
  const head = document.querySelector("thead tr"), body = document.querySelector("tbody");
  [{ label: "Slide", unit: "", figures: false }, ...found.heads].forEach(function ({ label, unit, figures }, column) {
    const cell = write(head, "th", "", figures ? "num" : "");
    const button = write(cell, "button", unit ? label + ", " + unit : label);
    button.type = "button";
    button.addEventListener("click", () => sort(column, cell));
  });
  slides = found.slides;
  rows = slides.map(function ({ name, cells }, index) {
    const row = write(body, "tr", "");
    write(row, "td", name).title = name;
    cells.forEach(([text], column) => write(row, "td", text || "–", found.heads[column].figures ? "num" : ""));
    row.addEventListener("click", () => open(index));
    return row;
  });
}

function sort(column, head) {
  const up = head.getAttribute("aria-sort") !== "ascending", body = document.querySelector("tbody");
  document.querySelectorAll("th").forEach((cell) => cell.removeAttribute("aria-sort"));
  head.setAttribute("aria-sort", up ? "ascending" : "descending");
  const key = (row) => {
    const { name, cells } = slides[rows.indexOf(row)];
    return column ? cells[column - 1][1] ?? cells[column - 1][0] : name;
  };
  const keyed = Array.from(body.rows, (row) => [key(row), row]);
  keyed.sort(function ([a], [b]) {
    if (a === "" || b === "") return (a === "") - (b === "");
    const order = typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), undefined, { numeric: true });
    return up ? order : -order;
  });
  body.append(...keyed.map(([, row]) => row));
  offer();
}

function step(by) {
  const visible = Array.from(document.querySelector("tbody").rows).filter((row) => !row.hidden);
  const next = visible[visible.indexOf(rows[number]) + by];
  if (next) open(rows.indexOf(next));
}

function offer() {
  const visible = Array.from(document.querySelector("tbody").rows).filter((row) => !row.hidden);
  const place = visible.indexOf(rows[number]);
  find("before").disabled = place <= 0;
  find("after").disabled = place === visible.length - 1;
}

// ---- one slide

async function open(index, place) {
  const mine = ++asked;
  rows.forEach((row, k) => row.classList.toggle("chosen", k === index));
  rows[index].scrollIntoView({ block: "nearest" });
  loader.stop();
  number = index;
  offer();
  silence();
  find("name").textContent = slides[index].name;
  find("cards").replaceChildren();
  shown = null;
  layers = {};
  view = null;
  later();
  let found;
  try {
    found = await read(`${index}/slide.json`);
  } catch (error) {
    if (mine === asked) say(error instanceof TypeError ? "No answer: the viewer has ended. Start it again and reload the page." : error.message);
    return;
  }
  if (mine !== asked) return; // another slide was asked for since
  show(found, `${index}/`, place);
}

function show(found, base, place) {
  found.notes.forEach(say);
  found.cards.forEach(function (card) {
    const name = write(find("cards"), "dt", card.label), value = write(find("cards"), "dd", card.text || "–");
    if (card.text && card.unit) write(value, "small", " " + card.unit);
    if (card.under) name.title = value.title = card.under;
  });
  shown = found;
  if (found.slide.length) layers.slide = new Pyramid(found.slide, found.side, base, "slide");
  if (found.map) layers.map = new Painted(found.map.levels, found.side, base, "map", (...tile) => colourMap(...tile, style()));
  if (found.label) layers.label = new Painted(found.label.levels, found.side, base, "label", (...tile) => colourLabel(...tile, inks()));
  if (found.view) {
    view = new Image();
    view.onload = later;
    view.src = base + "view.jpg";
  }
  document.querySelectorAll(".of-map").forEach((group) => { group.hidden = !found.map; });
  document.querySelector(".of-label").hidden = !found.label;
  document.querySelector(".of-tiles").hidden = !found.tiles.length;
  if (found.map) offerThresholds(found.map);
  find("classes").hidden = !(found.map && found.map.classes.length);
  if (found.label) explainLabel(found.label.legend);
  if (!found.size) { say("There is nothing to show of this slide."); shown = null; }
  else if (place) Object.assign(at, place);
  else fit();
  later();
}

function explainLabel(legend) {
  find("legend").replaceChildren();
  legend.forEach(function ({ name, colour }) {
    write(find("legend"), "i", "").style.background = `rgb(${colour})`;
    find("legend").append(name);
  });
}

const inks = () => shown.label.legend.map(({ colour }) => packColour(colour, 255));

// ---- the map at a threshold

let current = null; // colours of the map, made again after a change

function style() {
  if (current) return current;
  const limit = Number(find("threshold").value) / 1000;
  const tables = shown.map.colours[find("colours").value].map((text) =>
    Array.from({ length: 256 }, (_, k) => [0, 2, 4].map((c) => parseInt(text.substr(6 * k + c, 2), 16))));
  current = { colours: makeMapColours(tables, Number(find("opacity").value) / 100), limit, outline: find("outline").checked };
  return current;
}

function offerThresholds(map) {
  find("reset").textContent = "back to " + Number(map.threshold.toFixed(3));
  find("threshold").value = Math.round(1000 * map.threshold);
  const before = find("colours").value, names = Object.keys(map.colours);
  find("colours").replaceChildren(...names.map((name) => new Option(name, name)));
  if (names.includes(before)) find("colours").value = before;
  find("classes").replaceChildren();
  map.classes.forEach(function ({ name, colour }) {
    const item = write(find("classes"), "li", "");
    write(item, "i", "").style.background = colour;
    item.append(name + " ");
    write(item, "b", "");
  });
  repaint();
}

function repaint() {
  current = null;
  if (layers.map) {
    layers.map.version++;
    writeFigures(shown.map);
  }
  later();
}

function writeFigures({ counts, tissue, mm2, threshold, classes }) {
  const thousandths = Number(find("threshold").value), pixels = counts[thousandths];
  find("exact").value = (thousandths / 1000).toFixed(3);
  find("live").textContent = (tissue ? (100 * pixels / tissue).toFixed(2) : "–") + " % of tissue" + (mm2 ? ` · ${(pixels * mm2).toFixed(3)} mm²` : "");
  find("raw").hidden = false;
  find("raw").title = "At or above this threshold, before small objects are removed and small holes filled; counted over all px of the map.";
  find("reset").disabled = thousandths === Math.round(1000 * threshold);
  find("classes").querySelectorAll("b").forEach(function (text, n) {
    const own = classes[n].counts[thousandths], share = pixels ? (100 * own / pixels).toFixed(1) + " %" : "–";
    text.textContent = mm2 ? (own * mm2).toFixed(3) + " mm² · " + share : share;
  });
}

function moveThreshold(value) {
  find("threshold").value = Math.min(Math.max(Math.round(value), 0), 1000);
  repaint();
}

// ---- the picture

function fit() {
  at.x = shown.size[0] / 2;
  at.y = shown.size[1] / 2;
  at.per = findFit();
}

function findFit() {
  return Math.max(shown.size[0] / picture.clientWidth, shown.size[1] / picture.clientHeight) * 1.04;
}

function later() {
  if (!waiting) { waiting = true; requestAnimationFrame(draw); }
}

function draw() {
  waiting = false;
  const ratio = window.devicePixelRatio || 1, context = picture.getContext("2d");
  const wide = Math.round(picture.clientWidth * ratio), high = Math.round(picture.clientHeight * ratio);
  if (picture.width !== wide || picture.height !== high) Object.assign(picture, { width: wide, height: high });
  context.clearRect(0, 0, wide, high);
  const dark = !shown || !wide || !high;
  [whole, find("scale"), find("corner")].forEach((part) => { part.hidden = dark; });
  if (dark) { loader.load([]); return; }
  hold();
  const scale = ratio / at.per, [width, height] = shown.size, wishes = [];
  const box = { left: at.x - wide / 2 / scale, top: at.y - high / 2 / scale, right: at.x + wide / 2 / scale, bottom: at.y + high / 2 / scale };
  const corner = [Math.round(-box.left * scale), Math.round(-box.top * scale)];
  context.fillStyle = "#fff";
  context.fillRect(...corner, width * scale, height * scale);
  if (view && view.complete && view.naturalWidth)
    context.drawImage(view, ...corner, view.naturalWidth * shown.view * scale, view.naturalHeight * shown.view * scale);
  if (layers.slide) layers.slide.draw(context, box, scale, wishes);
  if (layers.map && find("map").checked) layers.map.drawOver(context, box, scale, wishes, at.per > shown.map.levels[0][0] / 3);
  if (layers.label && find("label").checked) layers.label.drawOver(context, box, scale, wishes, false);
  if (shown.tiles.length && find("attention").checked) drawAttention(context, box, scale, ratio);
  drawWhole(box);
  rule();
  loader.load(wishes);
  remember();
}

function drawAttention(context, box, scale, ratio) {
  shown.tiles.forEach(function ([x, y, side, weight]) {
    if (x > box.right || y > box.bottom || x + side < box.left || y + side < box.top) return;
    const place = [(x - box.left) * scale, (y - box.top) * scale, side * scale, side * scale];
    context.fillStyle = `rgba(59, 47, 125, ${0.45 * weight})`;
    context.fillRect(...place);
    context.lineWidth = 2 * ratio;
    context.strokeStyle = "#3b2f7d";
    context.strokeRect(...place);
  });
}

function hold() {
  // The picture stays on the slide; a slide smaller than the stage is centred.
  const [width, height] = shown.size, fits = findFit();
  at.per = Math.min(Math.max(at.per, Math.min(1 / 8, fits)), Math.max(1, fits));
  const half = [picture.clientWidth * at.per / 2, picture.clientHeight * at.per / 2];
  at.x = width < 2 * half[0] ? width / 2 : Math.min(Math.max(at.x, half[0]), width - half[0]);
  at.y = height < 2 * half[1] ? height / 2 : Math.min(Math.max(at.y, half[1]), height - half[1]);
}

function drawWhole(box) {
  const [width, height] = shown.size, scale = Math.min(0.2 * picture.clientWidth / width, 0.2 * picture.clientHeight / height), context = whole.getContext("2d");
  const size = [Math.max(1, Math.round(width * scale)), Math.max(1, Math.round(height * scale))];
  if (whole.width !== size[0] || whole.height !== size[1]) Object.assign(whole, { width: size[0], height: size[1] });
  context.clearRect(0, 0, ...size);
  if (view && view.complete && view.naturalWidth) context.drawImage(view, 0, 0, view.naturalWidth * shown.view * scale, view.naturalHeight * shown.view * scale);
  else if (layers.slide) {
    const top = layers.slide.levels.length - 1;
    layers.slide.find(top, { left: 0, top: 0, right: width, bottom: height }).forEach(function (tile) {
      if (tile.state === "ready") context.drawImage(tile.image, tile.left * scale, tile.top * scale, (tile.right - tile.left) * scale, (tile.bottom - tile.top) * scale);
    });
  }
  context.strokeStyle = "#d3212d";
  context.lineWidth = 2;
  context.strokeRect(box.left * scale, box.top * scale, (box.right - box.left) * scale, (box.bottom - box.top) * scale);
}

function rule() {
  const um = shown.mpp && shown.mpp[0], per = at.per * (um || 1), most = 0.2 * picture.clientWidth;
  const power = Math.pow(10, Math.floor(Math.log10(most * per)));
  const length = [5, 2, 1].map((m) => m * power).find((l) => l <= most * per);
  const bar = find("scale");
  bar.firstElementChild.style.width = length / per + "px";
  const text = um ? (length >= 1000 ? length / 1000 + " mm" : length + " µm") : length + " level-0 px";
  bar.lastElementChild.textContent = text + (um ? ` · ${Number(per.toPrecision(2))} µm/px, about ${Number((10 / per).toPrecision(2))}×` : " (µm/px unknown)");
}

function remember() {
  history.replaceState(null, "", `#${number}/${at.x.toFixed(0)}/${at.y.toFixed(0)}/${Number(at.per.toPrecision(4))}`);
}

function zoomBy(factor, x = 0, y = 0) {
  // x and y: the CSS px from the centre that stays where it is
  const before = at.per;
  at.per /= factor;
  hold();
  at.x += x * (before - at.per);
  at.y += y * (before - at.per);
  later();
}

// ---- mouse, fingers and keys

const place = (event) => [event.offsetX - picture.clientWidth / 2, event.offsetY - picture.clientHeight / 2];
const fingers = new Map();
picture.addEventListener("pointerdown", function (event) {
  picture.setPointerCapture(event.pointerId);
  fingers.set(event.pointerId, place(event));
});
picture.addEventListener("pointermove", function (event) {
  if (!shown) return;
  const now = place(event), before = fingers.get(event.pointerId);
  const [x, y] = [at.x + now[0] * at.per, at.y + now[1] * at.per].map((v) => Math.floor(v));
  find("where").hidden = false;
  find("where").textContent = `${x}, ${y} level-0 px`;
  if (!before) return;
  if (fingers.size === 2) {
    const [other] = Array.from(fingers).filter(([id]) => id !== event.pointerId).map(([, spot]) => spot);
    const apart = (spot) => Math.hypot(spot[0] - other[0], spot[1] - other[1]);
    zoomBy(apart(now) / Math.max(apart(before), 1), (now[0] + other[0]) / 2, (now[1] + other[1]) / 2);
  }
  at.x -= (now[0] - before[0]) * at.per / fingers.size;
  at.y -= (now[1] - before[1]) * at.per / fingers.size;
  fingers.set(event.pointerId, now);
  later();
});
for (const name of ["pointerup", "pointercancel"]) picture.addEventListener(name, (event) => fingers.delete(event.pointerId));
picture.addEventListener("wheel", function (event) {
  event.preventDefault();
  if (shown) zoomBy(Math.exp(-event.deltaY * (event.deltaMode ? 16 : 1) / 400), ...place(event));
}, { passive: false });
picture.addEventListener("dblclick", (event) => { if (shown) zoomBy(2, ...place(event)); });
for (const name of ["pointerdown", "pointermove"]) whole.addEventListener(name, function (event) {
  if (!shown || !event.buttons) return;
  at.x = event.offsetX * shown.size[0] / whole.width;
  at.y = event.offsetY * shown.size[1] / whole.height;
  later();
});

function toggle(id) {
  if (find(id).closest(".group").hidden) return;
  find(id).checked = !find(id).checked;
  find(id).dispatchEvent(new Event("input"));
}

const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const keys = {
  "+": () => zoomBy(1.5), "=": () => zoomBy(1.5), "-": () => zoomBy(1 / 1.5), 0: () => fit(), 1: () => { at.per = 1 / (window.devicePixelRatio || 1); },
  n: () => step(1), p: () => step(-1), t: () => toggle("map"), o: () => toggle("outline"), l: () => toggle("label"), a: () => toggle("attention"),
  "[": () => moveThreshold(Number(find("threshold").value) - 10), "]": () => moveThreshold(Number(find("threshold").value) + 10),
};
document.addEventListener("keydown", function (event) {
  const own = event.target.closest("input:not([type=checkbox]), select");
  if (own || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "n" || event.key === "p") keys[event.key]();
  else if (!shown) return;
  else if (moves[event.key]) {
    at.x += 80 * at.per * moves[event.key][0];
    at.y += 80 * at.per * moves[event.key][1];
  } else if (event.key in keys) keys[event.key]();
  else return;
  event.preventDefault();
  later();
});

find("threshold").addEventListener("input", repaint);
find("exact").addEventListener("change", function () {
  const given = Number(find("exact").value);
  if (find("exact").value !== "" && given >= 0 && given <= 1) find("threshold").value = Math.round(1000 * given);
  repaint();
});
find("reset").addEventListener("click", () => moveThreshold(1000 * shown.map.threshold));
for (const id of ["colours", "opacity", "outline"]) find(id).addEventListener("input", repaint);
for (const id of ["map", "label", "attention"]) find(id).addEventListener("input", later);
find("in").addEventListener("click", () => { if (shown) zoomBy(1.5); });
find("out").addEventListener("click", () => { if (shown) zoomBy(1 / 1.5); });
find("fit").addEventListener("click", () => { if (shown) { fit(); later(); } });
find("full").addEventListener("click", () => { if (shown) { keys[1](); later(); } });
find("before").addEventListener("click", () => step(-1));
find("after").addEventListener("click", () => step(1));
find("messages").querySelector("button").addEventListener("click", () => { find("messages").hidden = true; });
find("filter").addEventListener("input", function () {
  const text = find("filter").value.toLowerCase();
  rows.forEach((row, k) => { row.hidden = !slides[k].name.toLowerCase().includes(text); });
  offer();
});
new ResizeObserver(later).observe(stage);

read("slides.json").then(function (found) {
  listSlides(found);
  const [index, x, y, per] = location.hash.slice(1).split("/").map(Number);
  const place = [x, y, per].every((v) => Number.isFinite(v)) && per > 0 ? { x, y, per } : undefined;
  return rows[index] ? open(index, place) : open(0);
}).catch((error) => say(error.message));
