(function () {
  const home = document.getElementById("viewer");
  if (!home) return;
  const view = JSON.parse(home.dataset.view);
  const find = (name) => home.querySelector("." + name);
  const slide = find("of-slide"), codes = find("of-map");
  const panes = [find("left"), find("right")], scale = find("scale");
  const slider = find("threshold"), exact = find("exact");
  const opacity = find("opacity"), colours = find("colours");
  const rows = new Map();
  document.querySelectorAll("#regions tbody tr").forEach((row) => rows.set(Number(row.cells[0].dataset.sort), row));
  const regions = view.regions.map((region) => ({ id: region.id, box: region.box, path: path(region.rings) }));
  const painted = [document.createElement("canvas"), document.createElement("canvas")]; // over the slide, alone
  let planes = null, at = { x: view.width / 2, y: view.height / 2, zoom: 0 }, lit = 0, chosen = 0, waiting = false, asked = null;

  function path(rings) {
    const lines = new Path2D();
    rings.forEach(function (ring) {
      for (let k = 0; k < ring.length; k += 2) lines[k ? "lineTo" : "moveTo"](ring[k], ring[k + 1]);
      lines.closePath();
    });
    return lines;
  }

  // ---- the map in colours, again at each threshold

  function palette() {
    return view.colours[colours.value].map((text) =>
      Array.from({ length: 256 }, (_, k) => [0, 2, 4].map((c) => parseInt(text.substr(6 * k + c, 2), 16))));
  }

  function paint() {
    if (!planes) return;
    const tables = palette(), share = Number(opacity.value) / 100, limit = Number(slider.value) / 1000;
    const count = tables.length, faded = count > 1; // a class has one colour over the slide
    find("bar").style.background = tables.map((table, n) => "linear-gradient(to right," + table.map((rgb) => `rgb(${rgb})`).join() +
      `) 0 ${faded ? 100 * n / (count - 1) : 0}% / 100% ${100 / count}% no-repeat`).join();
    const over = tables.map(() => new Uint32Array(256)), alone = tables.map(() => new Uint32Array(256));
    const pack = ([r, g, b]) => r | (g << 8) | (b << 16);
    tables.forEach(function (table, n) {
      for (let k = 0; k < 256; k++) {
        const above = k / 255 >= limit - 1e-9;
        over[n][k] = pack(table[faded ? 255 : k]) | (Math.round(255 * share * (above ? 1 : 0.25 * k / 255)) << 24);
        alone[n][k] = pack(table[k]) | ((above ? 255 : 150) << 24);
      }
    });
    const { width, height } = view;
    const outline = home.querySelector(".outline").checked, ink = 0xff000000;
    const label = find("label"), labelled = label && label.checked;
    painted.forEach(function (layer, which) {
      const context = layer.getContext("2d"), image = context.createImageData(width, height);
      const out = new Uint32Array(image.data.buffer), colour = which ? alone : over;
      for (let k = 0; k < width * height; k++) {
        const scored = planes[4 * k + 1]; // 255 for the first class of cancer, 254 for the second
        if (scored) out[k] = colour[faded ? 255 - scored : 0][planes[4 * k]];
      }
      const tumour = (k) => planes[4 * k + 1] && planes[4 * k] / 255 >= limit - 1e-9;
      if (outline) edges(out, width, height, tumour, ink);
      if (labelled) edges(out, width, height, (k) => planes[4 * k + 2], 0xffd0ff00);
      context.putImageData(image, 0, 0);
    });
  }

  function edges(out, width, height, inside, colour) {
    for (let y = 0, k = 0; y < height; y++) {
      for (let x = 0; x < width; x++, k++) {
        if (!inside(k)) continue;
        if (x === 0 || y === 0 || x === width - 1 || y === height - 1 ||
            !inside(k - 1) || !inside(k + 1) || !inside(k - width) || !inside(k + width)) out[k] = colour;
      }
    }
  }

  // ---- the figures next to it: exact, from the counts of all pixels of the map

  function writeFigures() {
    const step = Number(slider.value), pixels = view.counts[step];
    exact.value = (step / 1000).toFixed(3);
    find("percent").textContent = view.tissue ? (100 * pixels / view.tissue).toFixed(2) : "–";
    if (find("mm2")) find("mm2").textContent = (pixels * view.mm2).toFixed(3);
    home.querySelectorAll(".classes b").forEach(function (text, n) {
      const own = view.classes[n].counts[step], share = pixels ? (100 * own / pixels).toFixed(1) + " %" : "–";
      text.textContent = find("mm2") ? (own * view.mm2).toFixed(3) + " mm² · " + share : share;
    });
    const mark = find("here");
    mark.setAttribute("x1", step / 5);
    mark.setAttribute("x2", step / 5);
    find("reset").disabled = step === Math.round(1000 * view.threshold);
  }

  // ---- the two panes

  function fit() {
    const pane = panes.find((canvas) => canvas.clientWidth);
    return Math.min(pane.clientWidth / view.width, pane.clientHeight / view.height);
  }

  function draw() {
    waiting = false;
    const least = fit();
    at.zoom = Math.min(Math.max(at.zoom, least), Math.max(16, 4 * least));
    const mode = view.counts ? home.querySelector("input[name=mode]:checked").value : "slide";
    panes.forEach(function (pane, right) {
      if (!pane.clientWidth) return;
      const ratio = window.devicePixelRatio || 1;
      const wide = Math.round(pane.clientWidth * ratio), high = Math.round(pane.clientHeight * ratio);
      if (pane.width !== wide || pane.height !== high) { pane.width = wide; pane.height = high; }
      const zoom = at.zoom * ratio, context = pane.getContext("2d");
      // The view stays on the slide; a slide smaller than the pane is centered.
      const half = { x: pane.clientWidth / at.zoom / 2, y: pane.clientHeight / at.zoom / 2 };
      at.x = view.width < 2 * half.x ? view.width / 2 : Math.min(Math.max(at.x, half.x), view.width - half.x);
      at.y = view.height < 2 * half.y ? view.height / 2 : Math.min(Math.max(at.y, half.y), view.height - half.y);
      context.setTransform(1, 0, 0, 1, 0, 0);
      context.fillStyle = "#f1f1f4";
      context.fillRect(0, 0, wide, high);
      context.setTransform(zoom, 0, 0, zoom, wide / 2 - at.x * zoom, high / 2 - at.y * zoom);
      context.imageSmoothingEnabled = zoom < 3;
      const shows = right || mode !== "pair" ? (mode === "pair" ? "blend" : mode) : "slide";
      if (shows === "map") {
        context.fillStyle = "#e1e1e1";
        context.fillRect(0, 0, view.width, view.height);
        context.drawImage(painted[1], 0, 0);
      } else {
        context.drawImage(slide, 0, 0, view.width, view.height);
        if (shows === "blend") context.drawImage(painted[0], 0, 0);
      }
      const tiles = find("attention");
      if (tiles && tiles.checked) {
        view.tiles.forEach(function ([x, y, side, weight]) {
          context.fillStyle = "rgba(59, 47, 125, " + 0.55 * weight + ")";
          context.fillRect(x, y, side, side);
          context.lineWidth = 1.5 * ratio / zoom;
          context.strokeStyle = "#3b2f7d";
          context.strokeRect(x, y, side, side);
        });
      }
      regions.forEach(function (region) {
        if (region.id !== lit && region.id !== chosen) return;
        [["#fff", 5], ["#00b7ff", 3]].forEach(function ([colour, width]) {
          context.lineWidth = width * ratio / zoom;
          context.strokeStyle = colour;
          context.stroke(region.path);
        });
      });
      if (asked) {
        context.lineWidth = 2 * ratio / zoom;
        context.strokeStyle = "#e0007a";
        context.strokeRect(...asked);
      }
    });
    rule();
  }

  // ---- a place in the address: slide.html#x=…&y=…&w=…&h=…, a box in level-0 px

  function visit() {
    const given = new URLSearchParams(window.location.hash.slice(1));
    const [x, y, w, h] = ["x", "y", "w", "h"].map((name) => parseFloat(given.get(name)) / view.level0);
    asked = x >= 0 && y >= 0 && w > 0 && h > 0 ? [x, y, w, h] : null;
    if (!asked) { later(); return; }
    const pane = panes.find((canvas) => canvas.clientWidth);
    at.x = x + w / 2;
    at.y = y + h / 2;
    at.zoom = Math.min(0.5 * pane.clientWidth / w, 0.5 * pane.clientHeight / h, 8);
    if (find("label") && !find("label").checked) { find("label").checked = true; paint(); }
    home.scrollIntoView();
    later();
  }

  function rule() {
    const per = (view.um || view.level0) / at.zoom, most = 0.3 * (panes.find((p) => p.clientWidth).clientWidth);
    const power = Math.pow(10, Math.floor(Math.log10(most * per)));
    const length = [5, 2, 1].map((m) => m * power).find((l) => l <= most * per);
    scale.firstElementChild.style.width = length / per + "px";
    const mm = view.um && length >= 1000;
    scale.lastElementChild.textContent = view.um ? (mm ? length / 1000 + " mm" : length + " µm") : length + " level-0 px";
  }

  function later() {
    if (!waiting) { waiting = true; requestAnimationFrame(draw); }
  }

  function zoomBy(factor, x, y) {
    const before = at.zoom, least = fit();
    at.zoom = Math.min(Math.max(at.zoom * factor, least), Math.max(16, 4 * least));
    at.x += x * (1 / before - 1 / at.zoom);
    at.y += y * (1 / before - 1 / at.zoom);
    later();
  }

  function choose(id, go) {
    chosen = id === chosen && !go ? 0 : id;
    rows.forEach((row, key) => row.classList.toggle("chosen", key === chosen));
    const region = regions.find((r) => r.id === chosen);
    if (region && go) {
      const [x0, y0, x1, y1] = region.box, pane = panes.find((canvas) => canvas.clientWidth);
      at.x = (x0 + x1) / 2;
      at.y = (y0 + y1) / 2;
      at.zoom = Math.min(0.6 * pane.clientWidth / (x1 - x0), 0.6 * pane.clientHeight / (y1 - y0), 4);
    }
    later();
  }

  panes.forEach(function (pane) {
    let from = null, moved = 0;
    const place = (event) => {
      const box = pane.getBoundingClientRect();
      return [event.clientX - box.left - box.width / 2, event.clientY - box.top - box.height / 2];
    };
    pane.addEventListener("pointerdown", function (event) {
      pane.setPointerCapture(event.pointerId);
      from = [event.clientX, event.clientY];
      moved = 0;
    });
    pane.addEventListener("pointermove", function (event) {
      if (!from) return;
      const step = [event.clientX - from[0], event.clientY - from[1]];
      moved += Math.abs(step[0]) + Math.abs(step[1]);
      at.x -= step[0] / at.zoom;
      at.y -= step[1] / at.zoom;
      from = [event.clientX, event.clientY];
      later();
    });
    pane.addEventListener("pointercancel", () => { from = null; });
    pane.addEventListener("pointerup", function (event) {
      from = null;
      if (moved > 4) return;
      const [dx, dy] = place(event), x = at.x + dx / at.zoom, y = at.y + dy / at.zoom;
      const context = pane.getContext("2d");
      context.setTransform(1, 0, 0, 1, 0, 0);
      const hit = regions.find((region) => context.isPointInPath(region.path, x, y, "evenodd"));
      choose(hit ? hit.id : 0, false);
      const row = hit && rows.get(hit.id);
      if (row && chosen) row.scrollIntoView({ block: "nearest" });
    });
    pane.addEventListener("wheel", function (event) {
      // The page scrolls on until the picture has been clicked.
      if (!event.ctrlKey && document.activeElement !== pane) return;
      event.preventDefault();
      zoomBy(Math.exp(-event.deltaY / 400), ...place(event));
    }, { passive: false });
    pane.addEventListener("dblclick", (event) => zoomBy(2, ...place(event)));
    pane.addEventListener("keydown", function (event) {
      const step = 60 / at.zoom;
      const moves = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] };
      if (moves[event.key]) { at.x += moves[event.key][0]; at.y += moves[event.key][1]; }
      else if (event.key === "+" || event.key === "=") zoomBy(1.5, 0, 0);
      else if (event.key === "-") zoomBy(1 / 1.5, 0, 0);
      else if (event.key === "0") at.zoom = 0;
      else return;
      event.preventDefault();
      later();
    });
  });

  rows.forEach(function (row, id) {
    row.addEventListener("mouseenter", () => { lit = id; later(); });
    row.addEventListener("mouseleave", () => { lit = 0; later(); });
    const button = row.querySelector("button");
    if (button) button.addEventListener("click", () => { choose(id, true); home.scrollIntoView({ block: "nearest" }); });
  });
  if (view.counts) {
    const moved = () => { writeFigures(); paint(); later(); };
    slider.addEventListener("input", moved);
    exact.addEventListener("change", function () {
      const asked = Number(exact.value);
      if (exact.value !== "" && asked >= 0 && asked <= 1) slider.value = Math.round(1000 * asked);
      moved();
    });
    find("reset").addEventListener("click", () => { slider.value = Math.round(1000 * view.threshold); moved(); });
    home.querySelectorAll(".paints").forEach((input) => input.addEventListener("input", () => { paint(); later(); }));
  }
  home.querySelectorAll("input[name=mode]").forEach((input) => input.addEventListener("input", function () {
    home.classList.toggle("single", input.value !== "pair");
    later();
  }));
  if (find("attention")) find("attention").addEventListener("input", later);
  find("in").addEventListener("click", () => zoomBy(1.5, 0, 0));
  find("out").addEventListener("click", () => zoomBy(1 / 1.5, 0, 0));
  find("fit").addEventListener("click", () => { at.zoom = 0; later(); });
  new ResizeObserver(later).observe(home);

  Promise.all([slide, codes].map((image) => image && image.decode())).then(function () {
    home.classList.add("ready");
    if (!view.counts) { draw(); visit(); return; }
    const scratch = document.createElement("canvas");
    [scratch, ...painted].forEach((layer) => { layer.width = view.width; layer.height = view.height; });
    const context = scratch.getContext("2d", { willReadFrequently: true });
    context.drawImage(codes, 0, 0);
    planes = context.getImageData(0, 0, view.width, view.height).data;
    writeFigures();
    paint();
    draw();
    visit();
  });
  window.addEventListener("hashchange", visit);
})();
