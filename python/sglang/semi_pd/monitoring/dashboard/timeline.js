// SPDX-License-Identifier: Apache-2.0
// What the controller decided over time, as a strip, and what happened, as marks on it.
"use strict";

const REASON_COLORS = {
  slo_met: "var(--ok)", too_few_samples: "var(--free)", cooling_down: "var(--c1)",
  awaiting_confirmation: "var(--shared)", ttft_fails: "var(--prefill)", tpot_fails: "var(--decode)",
  both_fail: "var(--bad)", at_bound: "var(--target)", other_slo_would_fail: "var(--target)",
  not_a_number: "var(--bad)",
};
const EVENT_COLORS = {
  split: "var(--prefill)", rotation: "var(--shared)", refused: "var(--bad)", death: "var(--bad)",
  violation: "var(--target)", met: "var(--ok)", advice: "var(--cached)",
};

class Timeline {
  constructor(parent) {
    this.legend = make("div", { class: "legend" });
    this.svg = make("svg", { class: "strip", role: "img", "aria-label": "Decisions and events over time" });
    parent.append(make("div", { class: "chart-head" }, make("h2", {}, "Rotations and decisions"), this.legend), this.svg);
  }

  draw(table, events, from, to) {
    const width = this.svg.clientWidth, height = this.svg.clientHeight;
    if (!width) return;
    const x = (at) => MARGIN.left + ((at - from) / (to - from)) * (width - MARGIN.left - MARGIN.right);
    this.svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    const parts = [make("line", { class: "grid", x1: MARGIN.left, x2: width - MARGIN.right, y1: 12, y2: 12 })];
    const runs = this.runs(table);
    for (const run of runs) {
      const band = { x: x(run.from), width: Math.max(x(run.to) - x(run.from) + 0.5, 1), y: 24, height: 16, rx: 2 };
      parts.push(make("rect", { ...band, fillColor: colorOf(run.reason) }, make("title", {}, words(run.reason))));
    }
    for (const event of events.filter((one) => one.at_s >= from)) {
      const dot = make("circle", { cx: x(event.at_s), cy: 12, r: 5, fillColor: EVENT_COLORS[event.kind] || "var(--faint)" },
        make("title", {}, `${clock(event.at_s)} ${event.text}`));
      parts.push(dot);
    }
    this.svg.replaceChildren(...parts, ...timeTicks(from, to, x, height));
    const seen = [...new Set(runs.map((run) => run.reason))];
    this.legend.replaceChildren(...seen.map((reason) =>
      make("span", {}, make("i", { class: "key area", color: colorOf(reason) }), words(reason))));
  }

  // Neighbouring samples with the same reason, as one run.
  runs(table) {
    const times = table.column("at_s"), reasons = table.has("reason") ? table.column("reason") : [];
    const runs = [];
    times.forEach((at, i) => {
      const last = runs[runs.length - 1];
      const touches = last && at - last.to <= table.longestGap;
      if (touches) last.to = at;
      if (reasons[i] && !(touches && last.reason === reasons[i])) runs.push({ reason: reasons[i], from: at, to: at });
    });
    return runs;
  }
}

function colorOf(reason) {
  return REASON_COLORS[reason] || "var(--cached)";
}

function showEvents(list, events) {
  const newest = events.slice(-100).reverse();
  const lines = newest.map((event) => make("li", {},
    make("time", {}, clock(event.at_s)),
    make("span", { class: "kind", color: EVENT_COLORS[event.kind] || "var(--soft)" }, words(event.kind)),
    make("span", {}, event.text)));
  if (!lines.length) lines.push(make("li", { class: "none" }, "Nothing has happened since the server started."));
  list.replaceChildren(...lines);
}
