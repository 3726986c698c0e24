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
  const marks = [operating, measured, preview, ...models].filter(Boolean).map((p) => [x.at(p.cost_usd), y(p.quality)]);
  const curve = along(ordered.map((p) => [x.at(p.cost_usd), y(p.quality)]));
  drawModels(chart, models, x.at, y, { width, bottom: height - PAD.bottom, drawn: [...curve, ...marks] });
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

// Points on a line, close enough that no name fits between two.
function along(corners) {
  return corners.flatMap(([x, y], i) => {
    const [nextX, nextY] = corners[i + 1] ?? [x, y];
    const most = Math.max(1, Math.ceil(Math.hypot(nextX - x, nextY - y) / 4));
    return Array.from({ length: most }, (_, k) => [x + ((nextX - x) * k) / most, y + ((nextY - y) * k) / most]);
  });
}

// Names go where they cover neither one another nor what is drawn; where that is impossible, on it.
function drawModels(chart, models, x, y, { width, bottom, drawn }) {
  const taken = [];
  const inside = (box) => box.left >= PAD.left && box.right <= width && box.y - 11 >= 0 && box.y + 3 <= bottom;
  const apart = (box) => !taken.some((t) => Math.abs(t.y - box.y) < 13 && t.left < box.right && box.left < t.right);
  const bare = (box) => !drawn.some(([px, py]) => px > box.left - 2 && px < box.right + 2 && py > box.y - 12 && py < box.y + 4);
  for (const model of [...models].sort((a, b) => b.quality - a.quality)) {
    const [cx, cy] = [x(model.cost_usd), y(model.quality)];
    chart.append(s("rect", { x: cx - 3.5, y: cy - 3.5, width: 7, height: 7, fill: "var(--ink-2)", transform: `rotate(45 ${cx} ${cy})` }));
    const size = model.model.length * 6.8;
    const sides = [
      { x: cx + 10, left: cx + 10, anchor: "start" },
      { x: cx - 10, left: cx - 10 - size, anchor: "end" },
      { x: cx, left: cx - size / 2, anchor: "middle" },
    ];
    const boxes = [4, 18, -10, 32, -24]
      .flatMap((dy) => sides.map((side) => ({ ...side, right: side.left + size, y: cy + dy })))
      .filter((box) => inside(box) && apart(box) && (box.anchor !== "middle" || box.y !== cy + 4));
    const box = boxes.find(bare) ?? boxes[0];
    if (!box) continue;
    taken.push(box);
    chart.append(s("text", { x: box.x, y: box.y, "text-anchor": box.anchor, class: "model-name" }, model.model));
  }
}

function label(operating, points) {
  const ends = points.length ? `${points.length} operating points.` : "";
  return operating
    ? `Quality against cost. ${ends} The router stands at quality ${digits(operating.quality)} for ${usd(operating.cost_usd)}.`
    : `Quality against cost. ${ends}`;
}
