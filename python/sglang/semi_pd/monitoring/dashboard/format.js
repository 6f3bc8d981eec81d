// SPDX-License-Identifier: Apache-2.0
// Elements, figures and times as text. Texts are set as text, never as HTML.
"use strict";

const SVG = "http://www.w3.org/2000/svg";

function make(tag, attributes = {}, ...children) {
  const isSvg = /^(svg|g|path|line|rect|circle|text|title)$/.test(tag);
  const element = isSvg ? document.createElementNS(SVG, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "color") element.style.color = value;
    else if (name === "fillColor") element.style.fill = value;
    else if (name === "strokeColor") element.style.stroke = value;
    else if (name === "background") element.style.background = value;
    else if (name === "basis") element.style.flexBasis = value;
    else element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

function figure(value) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  if (size >= 1e6) return (value / 1e6).toFixed(size >= 1e7 ? 0 : 1) + "M";
  if (size >= 1e4) return (value / 1e3).toFixed(size >= 1e5 ? 0 : 1) + "k";
  if (size >= 100 || Number.isInteger(value)) return value.toFixed(0);
  return value.toFixed(size >= 10 ? 1 : 2);
}

function bytes(value) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let place = 0;
  while (value >= 1024 && place < units.length - 1) { value /= 1024; place += 1; }
  return `${figure(value)} ${units[place]}`;
}

function clock(at_s, withSeconds = true) {
  const options = { hour: "2-digit", minute: "2-digit", hour12: false };
  if (withSeconds) options.second = "2-digit";
  return new Date(at_s * 1000).toLocaleTimeString("en-GB", options);
}

function words(name) {
  const text = name.replaceAll("_", " ").replace(/\b(slo|ttft|tpot)\b/g, (word) => word.toUpperCase());
  return text.charAt(0).toUpperCase() + text.slice(1);
}

// The least round number that holds the largest value, and the step between its ticks.
function roundScale(largest, ticks = 4) {
  const rough = Math.max(largest, 1e-9) / ticks;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((n) => n * power).find((n) => n >= rough * 0.999);
  return { step, top: Math.ceil(largest / step - 1e-9) * step };
}
