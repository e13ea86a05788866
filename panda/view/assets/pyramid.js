"use strict";
// A picture in levels of tiles: it asks for the tiles that are seen, and keeps those that were seen last.
// OpenSeadragon (6.1.1: 353 kB) does this too, but the layers that are coloured here would still be code of our own.

const MOST_LOADS = 6; // connections of a browser to one server
const KEPT = 160; // tiles of a layer, of up to 2 MB each

class Loader {
  // Loads the tiles that the layers wish for, nearest to the centre first, and gives up those that are out of sight.
  constructor(changed, failed) {
    this.changed = changed;
    this.failed = failed;
    this.running = new Map();
  }

  load(wishes) {
    const wished = new Set(wishes.map((wish) => wish.tile));
    this.running.forEach((control, tile) => { if (!wished.has(tile)) control.abort(); });
    wishes.sort((a, b) => a.order - b.order);
    for (const { tile, layer } of wishes) {
      if (this.running.size >= MOST_LOADS) break;
      if (!this.running.has(tile)) this.fetch(tile, layer);
    }
  }

  async fetch(tile, layer) {
    const control = new AbortController();
    this.running.set(tile, control);
    try {
      const answer = await fetch(layer.address(tile), { signal: control.signal });
      if (!answer.ok) throw new Error(await answer.text());
      const blob = await answer.blob();
      if (blob.size) await layer.fill(tile, blob);
      tile.state = blob.size ? "ready" : "empty";
    } catch (error) {
      if (error.name !== "AbortError") {
        tile.state = "broken";
        this.failed(error instanceof TypeError ? "No answer: the viewer has ended. Start it again and reload the page." : error.message);
      }
    }
    this.running.delete(tile);
    this.changed();
  }

  stop() {
    this.running.forEach((control) => control.abort());
  }
}

class Pyramid {
  // levels: [level-0 px per px, width, height], finest first; name: that of the layer in addresses
  constructor(levels, side, base, name) {
    Object.assign(this, { levels, side, base, name, tiles: new Map(), version: 0 });
  }

  address(tile) {
    return `${this.base}${this.name}/${tile.level}/${tile.column}_${tile.row}`;
  }

  async fill(tile, blob) {
    tile.image = await createImageBitmap(blob);
  }

  paint() {} // before a tile is drawn

  choose(perPixel) {
    // The coarsest level that is at least nearly as fine as the screen.
    let best = 0;
    this.levels.forEach(([downsample], level) => { if (downsample <= 1.3 * perPixel) best = level; });
    return best;
  }

  find(level, box) {
    // Return the tiles of a level in a box of level-0 px.
    const [downsample, width, height] = this.levels[level], step = downsample * this.side, found = [];
    const last = [Math.ceil(width / this.side) - 1, Math.ceil(height / this.side) - 1];
    for (let row = Math.max(0, Math.floor(box.top / step)); row <= Math.min(last[1], Math.floor(box.bottom / step)); row++)
      for (let column = Math.max(0, Math.floor(box.left / step)); column <= Math.min(last[0], Math.floor(box.right / step)); column++)
        found.push(this.get(level, column, row));
    return found;
  }

  get(level, column, row) {
    const key = level + "/" + column + "/" + row, [downsample, width, height] = this.levels[level];
    let tile = this.tiles.get(key);
    if (tile) this.tiles.delete(key); // the last one in the map was seen last
    else {
      const left = column * this.side, top = row * this.side;
      tile = { level, column, row, state: "new", left: left * downsample, top: top * downsample,
        right: Math.min(left + this.side, width) * downsample, bottom: Math.min(top + this.side, height) * downsample };
    }
    this.tiles.set(key, tile);
    return tile;
  }

  draw(context, box, scale, wishes) {
    // Draw what is there of a box of level-0 px, at device px per level-0 px; wish for the rest.
    const best = this.choose(1 / scale), seen = this.find(best, box), top = this.levels.length - 1;
    const missing = seen.filter((tile) => tile.state === "new");
    const under = missing.length ? this.levels.map((_, level) => level).filter((level) => level > best).reverse() : [];
    const centre = [(box.left + box.right) / 2, (box.top + box.bottom) / 2];
    missing.forEach((tile) => wishes.push({ tile, layer: this, order: Math.hypot(
      (tile.left + tile.right) / 2 - centre[0], (tile.top + tile.bottom) / 2 - centre[1]) * scale }));
    if (top > best) // soon something everywhere, and for the small picture of the whole slide
      this.find(top, box).forEach((tile) => { if (tile.state === "new") wishes.push({ tile, layer: this, order: -1 }); });
    const place = (v, from) => Math.round((v - from) * scale);
    for (const level of [...under, best]) {
      for (const tile of level === best ? seen : this.find(level, box)) {
        if (tile.state === "new") continue;
        const x = place(tile.left, box.left), y = place(tile.top, box.top);
        const width = place(tile.right, box.left) - x, height = place(tile.bottom, box.top) - y;
        if (this.clears) context.clearRect(x, y, width, height);
        if (tile.state === "ready") {
          this.paint(tile);
          context.drawImage(tile.image, x, y, width, height);
        } else if (tile.state === "broken") {
          context.fillStyle = "rgba(163, 32, 29, 0.25)";
          context.fillRect(x, y, width, height);
        }
      }
    }
    for (const [key, tile] of this.tiles) {
      if (this.tiles.size <= Math.max(KEPT, 3 * seen.length)) break;
      if (!wishes.some((wish) => wish.tile === tile)) this.tiles.delete(key);
    }
  }
}

class Painted extends Pyramid {
  // A layer of values, which are coloured here: `colour(values, width, height, out)` writes RGBA as one number a px.
  constructor(levels, side, base, name, colour) {
    super(levels, side, base, name);
    this.colour = colour;
    this.clears = true;
    this.layer = document.createElement("canvas");
  }

  async fill(tile, blob) {
    const bitmap = await createImageBitmap(blob, { colorSpaceConversion: "none", premultiplyAlpha: "none" });
    tile.image = document.createElement("canvas");
    Object.assign(tile.image, { width: bitmap.width, height: bitmap.height });
    const context = tile.image.getContext("2d", { willReadFrequently: true });
    context.drawImage(bitmap, 0, 0);
    const { data } = context.getImageData(0, 0, bitmap.width, bitmap.height);
    tile.values = new Uint32Array(data.length / 4); // the bytes are green, red and blue, from the upper one
    for (let k = 0; k < tile.values.length; k++) tile.values[k] = data[4 * k + 2] | (data[4 * k] << 8) | (data[4 * k + 1] << 16);
  }

  paint(tile) {
    if (tile.version === this.version) return;
    tile.version = this.version;
    const { width, height } = tile.image, context = tile.image.getContext("2d");
    const image = context.createImageData(width, height);
    this.colour(tile.values, width, height, new Uint32Array(image.data.buffer));
    context.putImageData(image, 0, 0);
  }

  drawOver(context, box, scale, wishes, smooth) {
    // Tiles of several levels replace each other before the layer is blended with what is below.
    const { width, height } = context.canvas, own = this.layer.getContext("2d");
    if (this.layer.width !== width || this.layer.height !== height) Object.assign(this.layer, { width, height });
    own.clearRect(0, 0, width, height);
    own.imageSmoothingEnabled = smooth;
    this.draw(own, box, scale, wishes);
    context.drawImage(this.layer, 0, 0);
  }
}

function isAtEdge(inside, width, height, x, y, k, thick) {
  // Whether a px of a shape has another one beside it; beyond the tile the shape is taken to continue.
  return (x >= thick && !inside(k - thick)) || (x + thick < width && !inside(k + thick)) ||
    (y >= thick && !inside(k - thick * width)) || (y + thick < height && !inside(k + thick * width));
}

function packColour([r, g, b], alpha) {
  return (r | (g << 8) | (b << 16) | (alpha << 24)) >>> 0;
}

function makeMapColours(tables, share) {
  // Colours over the slide by class: of probabilities below the threshold in 256 steps, then of those that reach it.
  // Several classes have one colour each; see viewer.js of the pages.
  const several = tables.length > 1;
  return tables.map((table) => Uint32Array.from({ length: 512 }, (_, k) =>
    packColour(table[several ? 255 : k & 255], Math.round(255 * share * (k > 255 ? 1 : 0.25 * k / 255)))));
}

function colourMap(values, width, height, out, { colours, limit, outline }) {
  const reaches = (k) => values[k] > 65535 && Math.fround((values[k] & 65535) / 65534) >= limit; // as the figures count
  for (let y = 0, k = 0; y < height; y++)
    for (let x = 0; x < width; x++, k++) {
      const scored = values[k] >> 16; // 255 for the first class of cancer, 254 for the second
      if (!scored) continue;
      const called = reaches(k), step = Math.round((values[k] & 65535) / 257);
      out[k] = colours[colours.length > 1 ? 255 - scored : 0][called ? 256 + step : step];
      if (outline && called && isAtEdge(reaches, width, height, x, y, k, 1)) out[k] = 0xff000000;
    }
}

function colourLabel(values, width, height, out, inks) {
  for (let y = 0, k = 0; y < height; y++)
    for (let x = 0; x < width; x++, k++) {
      const own = values[k] & 255;
      if (!own) continue;
      const same = (other) => (values[other] & 255) === own;
      const edge = isAtEdge(same, width, height, x, y, k, 1) || isAtEdge(same, width, height, x, y, k, 2);
      out[k] = edge ? inks[own - 1] : (inks[own - 1] & 0xffffff) | (30 << 24);
    }
}
