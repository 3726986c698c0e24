// Time series as SVG: stacked areas or lines, with a cursor for the mouse and for the arrow keys.

import { h, put, s } from "./dom.js";
import { clock } from "./format.js";
import { linear, log, logTicks, roundUp, ticks } from "./scale.js";

export const COLOURS = 8;
export const colour = (index) => `var(--s${index % COLOURS})`;
const PAD = { right: 10, top: 8, bottom: 22 };
const DIGIT = 6.6; // width of a character of the labels

// Redraws when its place changes its width.
const drawn = new WeakMap();
const watcher = new ResizeObserver((entries) => {
  for (const { target } of entries) {
    const chart = drawn.get(target);
    if (chart && chart.width !== target.clientWidth) chart.draw();
  }
});

export function mount(place, draw) {
  const chart = {
    width: 0,
    draw() {
      chart.width = place.clientWidth;
      if (chart.width) draw(chart.width, place.clientHeight);
    },
  };
  if (!drawn.has(place)) watcher.observe(place);
  drawn.set(place, chart);
  chart.draw();
}

// spec: {times, series: [{name, values, colour}], format, label, stacked, logarithmic}
export function timeChart(place, spec) {
  mount(place, (width, height) => draw(place, spec, width, height));
}

function draw(place, spec, width, height) {
  const { times } = spec;
  const layers = spec.stacked ? stack(spec.series, times.length) : spec.series.map((one) => ({ ...one, tops: one.values }));
  const values = layers.flatMap((layer) => layer.tops).filter((v) => v !== null && (!spec.logarithmic || v > 0));
  const top = height - PAD.bottom;
  const y = yScale(spec, values, top);
  const labels = y.ticks.map((value) => spec.format(value));
  const left = 12 + DIGIT * Math.max(4, ...labels.map((label) => label.length));
  const x = linear(times[0], times.at(-1), left, width - PAD.right);
  const chart = s("svg", {
    role: "img", tabindex: 0, "aria-label": spec.label, viewBox: `0 0 ${width} ${height}`, "data-focus": place.id,
  });
  for (const [index, value] of y.ticks.entries()) {
    chart.append(
      s("line", { class: "grid", x1: left, x2: width - PAD.right, y1: y.at(value), y2: y.at(value) }),
      s("text", { x: left - 8, y: y.at(value) + 4, "text-anchor": "end" }, labels[index]),
    );
  }
  for (const [value, anchor] of timeTicks(times, width - left)) {
    chart.append(s("text", { x: x(value), y: height - 5, "text-anchor": anchor }, clock(value)));
  }
  for (const layer of [...layers].reverse()) chart.append(...paths(layer, times, x, y.at, spec.stacked));
  addCursor(place, chart, spec, x, { top, left, width });
}

function yScale(spec, values, bottom) {
  if (spec.logarithmic && values.length) {
    const smallest = Math.min(...values) / 1.3;
    const largest = Math.max(...values) * 1.3;
    const at = log(smallest, Math.max(largest, smallest * 4), bottom, PAD.top);
    return { at, ticks: logTicks(smallest, Math.max(largest, smallest * 4)) };
  }
  const most = roundUp(Math.max(0, ...values));
  return { at: linear(0, most, bottom, PAD.top), ticks: ticks(0, most, 4) };
}

function timeTicks(times, width) {
  const most = Math.max(2, Math.min(6, Math.floor(width / 130)));
  const [first, last] = [times[0], times.at(-1)];
  return Array.from({ length: most }, (_, i) => [
    first + ((last - first) * i) / (most - 1),
    i === 0 ? "start" : i === most - 1 ? "end" : "middle",
  ]);
}

function stack(series, length) {
  const floor = new Array(length).fill(0);
  return series.map((one) => {
    const bottoms = [...floor];
    one.values.forEach((value, i) => {
      floor[i] += value ?? 0;
    });
    return { ...one, bottoms, tops: [...floor] };
  });
}

function paths(layer, times, x, y, filled) {
  const line = trace(layer.tops, times, x, y);
  if (!filled) {
    const dashed = layer.dashed ? "5 4" : undefined;
    return [s("path", { d: line, fill: "none", stroke: layer.colour, "stroke-width": 1.75, "stroke-linejoin": "round", "stroke-linecap": "round", "stroke-dasharray": dashed })];
  }
  const back = layer.bottoms.map((value, i) => `L${x(times[i]).toFixed(1)} ${y(value).toFixed(1)}`).reverse();
  return [
    s("path", { d: `${line}${back.join("")}Z`, fill: layer.colour, "fill-opacity": 0.82, stroke: "var(--panel)", "stroke-width": 0.75 }),
  ];
}

function trace(values, times, x, y) {
  let path = "";
  let gap = true;
  values.forEach((value, i) => {
    if (value === null || value === undefined) {
      gap = true;
      return;
    }
    const at = `${x(times[i]).toFixed(1)} ${y(value).toFixed(1)}`;
    path += gap ? `M${at}h0` : `L${at}`; // h0: a lone value is a dot
    gap = false;
  });
  return path;
}

function addCursor(place, chart, spec, x, { top, left: start, width }) {
  const { times } = spec;
  const line = s("line", { class: "cursor", y1: PAD.top, y2: top, visibility: "hidden" });
  const tip = h("div", { class: "tip", hidden: true });
  chart.append(line);
  let at = times.length - 1;
  const moveTo = (index) => {
    at = Math.max(0, Math.min(times.length - 1, index));
    const left = x(times[at]);
    line.setAttribute("x1", left);
    line.setAttribute("x2", left);
    line.setAttribute("visibility", "visible");
    const rows = spec.series
      .filter((one) => one.values[at] || !spec.stacked)
      .map((one) => h("div", {}, h("span", {}, h("i", { class: "swatch", style: { background: one.colour } }), one.name), h("b", {}, spec.format(one.values[at]))));
    tip.replaceChildren(h("div", {}, clock(times[at])), ...(rows.length ? rows : [h("div", {}, "nothing")]));
    tip.hidden = false;
    const room = tip.offsetWidth + 14;
    tip.style.left = `${Math.max(0, left + room > width ? left - room : left + 14)}px`;
    tip.style.top = `${PAD.top}px`;
  };
  const leave = () => {
    tip.hidden = true;
    line.setAttribute("visibility", "hidden");
  };
  chart.addEventListener("pointermove", (event) => {
    const share = (event.offsetX - start) / (width - start - PAD.right);
    moveTo(Math.round(share * (times.length - 1)));
  });
  chart.addEventListener("pointerleave", leave);
  chart.addEventListener("blur", leave);
  chart.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step) return;
    event.preventDefault();
    moveTo(at + (tip.hidden ? 0 : step));
  });
  put(place, chart, tip);
}

export function legend(items) {
  return h(
    "ul",
    { class: "legend" },
    items.map(({ name, value, colour: fill }) =>
      h("li", {}, h("i", { class: "swatch", style: { background: fill } }), name, value !== undefined && [" ", h("b", {}, value)]),
    ),
  );
}
