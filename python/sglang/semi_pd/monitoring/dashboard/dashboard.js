// SPDX-License-Identifier: Apache-2.0
// Asks the server every two seconds and shows what it says.
"use strict";

const ASK_EVERY_MS = 2000;
const KEEP_S = 3700;
const STATE_COLORS = {
  free: "var(--free)", running: "var(--shared)", leased: "var(--leased)", cached: "var(--cached)",
};
const at = (id) => document.getElementById(id);

// The server's history, column by column.
class Table {
  constructor() { this.columns = []; this.rows = []; this.events = []; this.next = 0; this.longestGap = 10; }

  add(answer) {
    if (answer.next < this.next) { this.rows = []; this.events = []; }
    this.columns = answer.columns;
    this.rows.push(...answer.rows);
    this.events.push(...answer.events);
    this.next = answer.next;
    this.longestGap = answer.interval_s * 4;
    const oldest = this.last - KEEP_S;
    this.rows = this.rows.filter((row) => row[0] >= oldest);
  }

  get last() { return this.rows.length ? this.rows[this.rows.length - 1][0] : Date.now() / 1000; }
  has(name) { return this.columns.includes(name); }
  column(name) { const place = this.columns.indexOf(name); return this.rows.map((row) => row[place]); }

  from(start) {
    const part = Object.assign(new Table(), this);
    part.rows = this.rows.filter((row) => row[0] >= start);
    return part;
  }

  placeOf(time) {
    const later = this.rows.findIndex((row) => row[0] >= time);
    return later < 0 ? this.rows.length - 1 : later;
  }
}

class Dashboard {
  constructor() {
    this.table = new Table();
    this.status = null;
    this.hover = null;
    this.minutes = Number(localStorage.getItem("semi-pd-minutes")) || 15;
    const charts = at("charts");
    const line = (key, label, color, more = {}) => ({ key, label, color, ...more });
    const latency = (name) => [
      line(`${name}_p50_ms`, "P50", "var(--c1)"), line(`${name}_p95_ms`, "P95", "var(--c2)"), line(`${name}_p99_ms`, "P99", "var(--c3)")];
    this.split = new Chart(charts, "Split", [
      line("asked_prefill", "prefill", "var(--prefill)", { step: true }), line("asked_decode", "decode", "var(--decode)", { step: true }),
      line("realised_prefill", "realised", "var(--prefill)", { dash: true }), line("realised_decode", "realised", "var(--decode)", { dash: true }),
    ], { unit: "% of the compute", most: 100 });
    this.blocks = new Chart(charts, "KV blocks", [], { unit: "in use", stacked: true });
    this.ttft = new Chart(charts, "TTFT", latency("ttft"), { unit: "ms" });
    this.tpot = new Chart(charts, "TPOT", latency("tpot"), { unit: "ms" });
    this.queues = new Chart(charts, "Requests", [
      line("waiting", "waiting", "var(--prefill)"), line("decoding", "decoding", "var(--decode)"),
      line("prefill_queue", "P queue", "var(--prefill)", { dash: true }), line("decode_queue", "D queue", "var(--decode)", { dash: true }),
    ], { unit: "now" });
    this.tokens = new Chart(charts, "Throughput", [line("tokens_per_s", "output", "var(--shared)")], { unit: "tokens/s" });
    this.charts = [this.split, this.blocks, this.ttft, this.tpot, this.queues, this.tokens];
    for (const chart of this.charts) chart.onHover = (time) => { this.hover = time; this.draw(); };
    this.timeline = new Timeline(at("timeline"));
    new ResizeObserver(() => this.draw()).observe(charts);
    this.wire();
  }

  wire() {
    const buttons = [...document.querySelectorAll("#ranges button")];
    const mark = () => buttons.forEach((b) => b.setAttribute("aria-pressed", Number(b.dataset.minutes) === this.minutes));
    buttons.forEach((b) => b.addEventListener("click", () => {
      this.minutes = Number(b.dataset.minutes);
      localStorage.setItem("semi-pd-minutes", this.minutes);
      mark();
      this.draw();
    }));
    mark();
    const root = document.documentElement;
    const dark = matchMedia("(prefers-color-scheme: dark)");
    const choose = () => { root.dataset.theme = localStorage.getItem("semi-pd-theme") || (dark.matches ? "dark" : "light"); };
    dark.addEventListener("change", choose);
    choose();
    at("theme").addEventListener("click", () => {
      localStorage.setItem("semi-pd-theme", root.dataset.theme === "dark" ? "light" : "dark");
      choose();
    });
    at("ask-key").addEventListener("submit", (event) => {
      event.preventDefault();
      sessionStorage.setItem("semi-pd-key", at("key").value);
      this.refresh();
    });
  }

  async ask(path) {
    const key = sessionStorage.getItem("semi-pd-key");
    const headers = key ? { Authorization: `Bearer ${key}` } : {};
    const answer = await fetch(path, { headers, cache: "no-store" });
    if (!answer.ok) throw Object.assign(new Error(`${path}: HTTP ${answer.status}`), { status: answer.status });
    return answer.json();
  }

  async run() {
    for (;;) {
      if (!document.hidden || !this.status) await this.refresh();
      await new Promise((resolve) => setTimeout(resolve, ASK_EVERY_MS));
    }
  }

  async refresh() {
    try {
      this.status = await this.ask("status");
      this.table.add(await this.ask(`history?since=${this.table.next}`));
      this.showKeyForm(false);
      if (!at("model").textContent) await this.nameModel();
      this.show();
    } catch (error) {
      const isRefused = error.status === 401;
      if (isRefused) this.showKeyForm(true);
      this.showState(isRefused ? "key needed" : "not reachable", "bad");
    }
  }

  async nameModel() {
    const models = await this.ask("../v1/models");
    at("model").textContent = models.data.length ? models.data[0].id : "";
  }

  showKeyForm(isShown) {
    at("ask-key").hidden = !isShown;
    document.querySelector("main").hidden = isShown;
  }

  showState(text, kind) {
    at("state").textContent = text;
    at("state").className = `pill ${kind}`;
  }

  show() {
    const { status } = this, rotation = status.process_rotation_status;
    this.showState(status.is_running ? "running" : "not running", status.is_running ? "ok" : "bad");
    const control = status.slo_controller_status;
    const backend = status.partition_backend === "none" ? "" : `${status.partition_backend} · `;
    at("facts").textContent = `${backend}generation ${rotation.generation} · controller ${control.is_running ? control.mode : "off"}`;
    const order = Object.keys(STATE_COLORS).map((state) => `kv_${state}`);
    const states = this.table.columns.filter((name) => name.startsWith("kv_") && name !== "kv_free");
    states.sort((one, other) => order.indexOf(one) - order.indexOf(other));
    this.blocks.series = states.map((key) => ({ key, label: words(key.slice(3)).toLowerCase(), color: STATE_COLORS[key.slice(3)] || "var(--c3)" }));
    this.ttft.options.target = control.slo_constraints.ttft_target_ms;
    this.tpot.options.target = control.slo_constraints.tpot_target_ms;
    at("tiles").replaceChildren(...tiles(status));
    showEvents(at("events"), this.table.events);
    at("workers").replaceChildren(...workers(status.components));
    this.draw();
  }

  draw() {
    if (!this.status) return;
    const to = this.table.last, from = to - this.minutes * 60;
    const part = this.table.from(from);
    for (const chart of this.charts) chart.draw(part, from, to, this.hover);
    this.timeline.draw(part, this.table.events, from, to);
  }
}

function tile(title, value, unit, note, more = {}) {
  return make("div", { class: `card tile${more.isBad ? " bad" : ""}` }, make("h2", {}, title),
    make("div", { class: "figure" }, value, unit ? make("small", {}, ` ${unit}`) : null),
    make("div", { class: "note" }, note), more.bar || null);
}

function bar(parts) {
  return make("div", { class: "bar" }, ...parts.map(([share, color]) =>
    make("i", { background: color, basis: `${Math.min(share, 100)}%` })));
}

function latencyTile(name, metrics, constraints) {
  const judged = `P${constraints.percentile}`, key = name.toLowerCase();
  const target = constraints[`${key}_target_ms`], samples = metrics[`${key}_samples`];
  const value = samples ? metrics[`${key}_p${constraints.percentile}_ms`] : null;
  const isBad = value !== null && value > target;
  const fill = value === null ? 0 : (100 * value) / target;
  return tile(`${name} ${judged}`, figure(value), value === null ? "" : "ms", `target ${figure(target)} ms · n ${figure(samples)}`,
    { isBad, bar: bar([[fill, isBad ? "var(--bad)" : "var(--ok)"]]) });
}

function tiles(status) {
  const { metrics, slo_controller_status: control, process_rotation_status: rotation } = status;
  const asked = rotation.current_sm_allocation, realised = rotation.realised_sm_allocation;
  const usage = status.unified_memory_status.memory_usage;
  const overlap = Math.max(100, asked.prefill_percentage + asked.decode_percentage) / 100;
  const split = bar([[asked.prefill_percentage / overlap, "var(--prefill)"], [asked.decode_percentage / overlap, "var(--decode)"]]);
  const note = realised
    ? `realised ${figure(realised.prefill_percentage)} / ${figure(realised.decode_percentage)}`
    : "prefill / decode, percent";
  const used = usage ? 100 * usage.utilization_ratio : 0;
  return [
    tile("Split", `${asked.prefill_percentage} / ${asked.decode_percentage}`, "%", note, { bar: split }),
    latencyTile("TTFT", metrics, control.slo_constraints),
    latencyTile("TPOT", metrics, control.slo_constraints),
    tile("KV cache", figure(+used.toFixed(1)), "%", usage ? `of ${bytes(usage.total_memory_bytes)} · peak ${figure(usage.peak_blocks)}` : "",
      { bar: bar([[used, used > 90 ? "var(--bad)" : "var(--cached)"]]) }),
    tile("Requests", figure(metrics.waiting_requests + metrics.decoding_requests), "",
      `${metrics.waiting_requests} waiting · ${metrics.decoding_requests} decoding`),
    tile("Throughput", figure(metrics.token_throughput), "tok/s", `${figure(metrics.request_throughput)} requests/s`),
  ];
}

function workers(components) {
  const head = make("tr", {}, make("th", {}, "process"), make("th", { class: "number" }, "pid"), make("th", { class: "number" }, "generation"));
  const lines = Object.entries(components).map(([name, one]) => make("tr", {},
    make("td", {}, make("i", { class: `dot${one.is_alive ? "" : " dead"}` }), name, one.is_alive ? "" : " (ended)"),
    make("td", { class: "number" }, String(one.pid)), make("td", { class: "number" }, String(one.generation))));
  return [head, ...lines];
}

new Dashboard().run();
