// Quality against cost: the router's frontier, single models, the operating point and a preview.

import { mount } from "./charts.js";
import { put, s } from "./dom.js";
import { digits, usd } from "./format.js";
import { linear, log, logTicks, ticks } from "./scale.js";

const PAD = { left: 54, right: 22, top: 14, bottom: 40 };

export function frontierChart(place, spec) {
  mount(place, (width, height) => draw(place, spec, width, height));
}

function draw(place, { points, models, operating, preview, measured, unit }, width, height) {
  const all = [...points, ...models, operating, preview, measured].filter(Boolean);
  const costs = all.map((p) => p.cost_usd);
  const [cheap, dear] = [Math.min(...costs), Math.max(...costs)];
  const x = axis(cheap, dear, width);
  const qualities = all.map((p) => p.quality);
  const [worst, best] = [Math.min(...qualities), Math.max(...qualities)];
  const margin = (best - worst || 0.1) * 0.12;
  const y = linear(worst - margin, best + margin, height - PAD.bottom, PAD.top);
  const chart = s("svg", { role: "img", viewBox: `0 0 ${width} ${height}`, "aria-label": label(operating, points) });
  for (const value of ticks(worst - margin, best + margin, 5)) {
    chart.append(
      s("line", { class: "grid", x1: PAD.left, x2: width - PAD.right, y1: y(value), y2: y(value) }),
      s("text", { x: PAD.left - 8, y: y(value) + 4, "text-anchor": "end" }, digits(value, 3)),
    );
  }
  for (const value of x.ticks) {
    chart.append(s("text", { x: x.at(value), y: height - PAD.bottom + 17, "text-anchor": "middle" }, usd(value)));
  }
  chart.append(
    s("text", { x: width - PAD.right, y: height - 5, "text-anchor": "end" }, `cost, ${unit}${x.isLog ? ", log scale" : ""}`),
    s("text", { x: PAD.left, y: PAD.top - 3 }, "quality"),
  );
  const ordered = [...points].sort((a, b) => a.cost_usd - b.cost_usd);
  const path = ordered.map((p, i) => `${i ? "L" : "M"}${x.at(p.cost_usd).toFixed(1)} ${y(p.quality).toFixed(1)}`).join("");
  chart.append(s("path", { d: path, fill: "none", stroke: "var(--accent)", "stroke-width": 2, "stroke-linejoin": "round" }));
  drawModels(chart, models, x.at, y, width);
  if (operating) {
    chart.append(
      s("circle", { cx: x.at(operating.cost_usd), cy: y(operating.quality), r: 6, fill: "var(--accent)", stroke: "var(--panel)", "stroke-width": 2 }),
    );
  }
  if (measured) {
    const [cx, cy] = [x.at(measured.cost_usd), y(measured.quality)];
    chart.append(s("path", { d: `M${cx - 5} ${cy - 5}l10 10m0 -10l-10 10`, stroke: "var(--s3)", "stroke-width": 2.5, "stroke-linecap": "round" }));
  }
  if (preview) {
    chart.append(
      s("circle", { cx: x.at(preview.cost_usd), cy: y(preview.quality), r: 7, fill: "none", stroke: "var(--s1)", "stroke-width": 2.5 }),
    );
  }
  put(place, chart);
}

function axis(cheap, dear, width) {
  const isLog = cheap > 0 && dear / cheap > 6;
  const [low, high] = isLog ? [cheap / 1.25, dear * 1.25] : [cheap - (dear - cheap || dear || 1) * 0.06, dear + (dear - cheap || dear || 1) * 0.08];
  const at = (isLog ? log : linear)(low, high, PAD.left, width - PAD.right);
  const most = Math.max(2, Math.floor((width - PAD.left) / 90));
  const found = isLog ? logTicks(low, high) : ticks(Math.max(0, low), high, most);
  const stride = Math.ceil(found.length / most);
  return { at, ticks: found.filter((_, i) => i % stride === 0), isLog };
}

// Names go where they do not cover one another.
function drawModels(chart, models, x, y, width) {
  const taken = [];
  for (const model of [...models].sort((a, b) => b.quality - a.quality)) {
    const [cx, cy] = [x(model.cost_usd), y(model.quality)];
    chart.append(s("rect", { x: cx - 3.5, y: cy - 3.5, width: 7, height: 7, fill: "var(--ink-2)", transform: `rotate(45 ${cx} ${cy})` }));
    const size = model.model.length * 6.4;
    const isLeft = cx + 10 + size > width - PAD.right;
    const left = isLeft ? cx - 10 - size : cx + 10;
    const place = [4, 18, -10].map((dy) => cy + dy).find((ty) => !taken.some((t) => Math.abs(t.y - ty) < 13 && t.left < left + size && left < t.right));
    if (place === undefined) continue;
    taken.push({ y: place, left, right: left + size });
    chart.append(s("text", { x: isLeft ? cx - 9 : cx + 9, y: place, "text-anchor": isLeft ? "end" : "start" }, model.model));
  }
}

function label(operating, points) {
  const ends = points.length ? `${points.length} operating points.` : "";
  return operating
    ? `Quality against cost. ${ends} The router stands at quality ${digits(operating.quality)} for ${usd(operating.cost_usd)}.`
    : `Quality against cost. ${ends}`;
}
