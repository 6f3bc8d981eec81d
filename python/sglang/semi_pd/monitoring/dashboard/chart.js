// SPDX-License-Identifier: Apache-2.0
// One chart over time: lines, or areas on top of each other, with a crosshair that all
// charts share. The legend shows the figures under the crosshair, else the newest ones.
"use strict";

const MARGIN = { left: 44, right: 8, top: 8, bottom: 20 };

class Chart {
  // series: [{ key, label, color, dash, step }]; options: { unit, stacked, most, target }
  constructor(parent, title, series, options = {}) {
    this.series = series;
    this.options = options;
    this.legend = make("div", { class: "legend" });
    this.svg = make("svg", { class: "plot", role: "img", "aria-label": title });
    const unit = make("span", { class: "unit" }, options.unit || "");
    parent.append(make("div", { class: "card" },
      make("div", { class: "chart-head" }, make("h2", {}, title), unit, this.legend), this.svg));
    this.svg.addEventListener("pointermove", (event) => this.point(event));
    this.svg.addEventListener("pointerleave", () => this.onHover(null));
    this.onHover = () => {};
  }

  point(event) {
    if (!this.frame) return;
    const { from, to, width } = this.frame;
    const x = event.clientX - this.svg.getBoundingClientRect().left - MARGIN.left;
    const inside = width - MARGIN.left - MARGIN.right;
    this.onHover(from + ((to - from) * Math.min(Math.max(x, 0), inside)) / inside);
  }

  draw(table, from, to, hover) {
    const width = this.svg.clientWidth, height = this.svg.clientHeight;
    if (!width || !height) return;
    this.frame = { from, to, width, height };
    const times = table.column("at_s");
    const layers = this.layers(table);
    const { top, step } = this.scale(layers);
    const x = (at) => MARGIN.left + ((at - from) / (to - from)) * (width - MARGIN.left - MARGIN.right);
    const y = (value) => height - MARGIN.bottom - (value / top) * (height - MARGIN.top - MARGIN.bottom);
    this.svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    const parts = [...this.grid(top, step, y), ...timeTicks(from, to, x, height)];
    if (this.options.target) parts.push(...this.targetLine(y, top));
    for (const layer of layers) parts.push(...this.shape(layer, times, x, y, table.longestGap));
    const place = table.placeOf(hover === null ? to : hover);
    if (hover !== null && times.length) {
      const at = x(times[place]);
      parts.push(make("line", { class: "cross", x1: at, x2: at, y1: MARGIN.top, y2: height - MARGIN.bottom }));
    }
    if (!layers.some((layer) => layer.values.some((value) => value !== null))) {
      parts.push(make("text", { class: "empty", x: (width + MARGIN.left) / 2, y: height / 2 }, "nothing measured yet"));
    }
    this.svg.replaceChildren(...parts);
    this.showLegend(layers, place);
  }

  layers(table) {
    const layers = this.series
      .filter((one) => table.has(one.key))
      .map((one) => ({ ...one, values: table.column(one.key) }))
      .filter((layer) => !layer.dash || layer.values.some((value) => value !== null));
    if (!this.options.stacked) return layers;
    let base = null;
    for (const layer of layers) {
      layer.base = base;
      layer.upper = layer.values.map((value, i) => (value ?? 0) + (base ? base[i] : 0));
      base = layer.upper;
    }
    return layers;
  }

  scale(layers) {
    if (this.options.most) return { top: this.options.most, step: this.options.most / 4 };
    const drawn = layers.flatMap((layer) => layer.upper || layer.values);
    const largest = drawn.reduce((most, value) => Math.max(most, value ?? 0), 0);
    const room = Math.max(largest, (this.options.target || 0) * 1.15);
    return this.options.stacked ? roundScale(Math.max(room, 1)) : roundScale(Math.max(room * 1.04, 1e-3));
  }

  grid(top, step, y) {
    const parts = [];
    for (let value = 0; value <= top * 1.001; value += step) {
      parts.push(make("line", { class: "grid", x1: MARGIN.left, x2: this.frame.width - MARGIN.right, y1: y(value), y2: y(value) }));
      parts.push(make("text", { x: MARGIN.left - 8, y: y(value) + 4, "text-anchor": "end" }, figure(+value.toPrecision(6))));
    }
    return parts;
  }

  targetLine(y, top) {
    const { target } = this.options, right = this.frame.width - MARGIN.right;
    const ends = { x1: MARGIN.left, x2: right, y1: y(target), y2: y(target) };
    const over = { class: "over", x: MARGIN.left, width: right - MARGIN.left, y: y(top), height: y(target) - y(top) };
    return [make("rect", over), make("line", { class: "target", ...ends })];
  }

  shape(layer, times, x, y, longestGap) {
    const line = pathOf(times, layer.upper || layer.values, x, y, longestGap, layer.step);
    if (!this.options.stacked) {
      const path = make("path", { class: "line", d: line.join(""), strokeColor: layer.color });
      if (layer.dash) path.setAttribute("stroke-dasharray", "4 4");
      return [path];
    }
    const below = layer.base || times.map(() => 0);
    let d = "";
    times.forEach((at, i) => { d += `${i ? "L" : "M"}${x(at).toFixed(1)} ${y(layer.upper[i]).toFixed(1)}`; });
    for (let i = times.length - 1; i >= 0; i -= 1) d += `L${x(times[i]).toFixed(1)} ${y(below[i]).toFixed(1)}`;
    return d ? [make("path", { class: "area", d: d + "Z", fillColor: layer.color })] : [];
  }

  showLegend(layers, place) {
    const entries = layers.map((layer) => {
      const key = `key${layer.dash ? " dashed" : ""}${this.options.stacked ? " area" : ""}`;
      return make("span", {}, make("i", { class: key, color: layer.color }), layer.label, " ",
        make("b", {}, figure(layer.values[place])));
    });
    if (this.options.target) {
      entries.push(make("span", {}, make("i", { class: "key dashed", color: "var(--target)" }), "SLO ",
        make("b", {}, figure(this.options.target))));
    }
    this.legend.replaceChildren(...entries);
  }
}

// A path that is broken where a figure is missing or nothing was sampled for a while.
function pathOf(times, values, x, y, longestGap, step) {
  const parts = [];
  let isOpen = false;
  times.forEach((at, i) => {
    if (values[i] === null || values[i] === undefined) { isOpen = false; return; }
    if (i && at - times[i - 1] > longestGap) isOpen = false;
    const px = x(at).toFixed(1), py = y(values[i]).toFixed(1);
    if (!isOpen) parts.push(`M${px} ${py}h.01`);
    else parts.push(step ? `H${px}V${py}` : `L${px} ${py}`);
    isOpen = true;
  });
  return parts;
}

function timeTicks(from, to, x, height) {
  const span = to - from;
  const step = [60, 120, 300, 600, 900, 1800].find((s) => span / s <= 6) || 1800;
  const parts = [];
  for (let at = Math.ceil(from / step) * step; at <= to; at += step) {
    if (x(at) < MARGIN.left + 14) continue;
    parts.push(make("text", { x: x(at), y: height - 4, "text-anchor": x(at) > x(to) - 16 ? "end" : "middle" }, clock(at, false)));
  }
  return parts;
}
