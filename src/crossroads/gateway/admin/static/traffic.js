// Live traffic: who answers, how fast, and what it costs against the always-best model.

import { attempt, get, optional, poll } from "./api.js";
import { colour, legend, timeChart } from "./charts.js";
import { bar, blank, byId, h, meter, put, show, table } from "./dom.js";
import { bytes, count, digits, percent, seconds, usd } from "./format.js";
import { phases } from "./parts.js";

const UNANSWERED = "unanswered";
const colours = new Map(); // a model keeps its colour while the page is open
const colourOf = (name) => {
  if (name === UNANSWERED) return "var(--s7)";
  if (!colours.has(name)) colours.set(name, colour(colours.size));
  return colours.get(name);
};

const period = () => Number(document.querySelector('#window input:checked').value);

async function refresh() {
  const traffic = await optional(`/api/traffic?seconds=${period()}&since=${Math.floor(Date.now() / 1e3 - period())}`, "traffic");
  if (!traffic) {
    put(byId("empty"), blank("Traffic is not watched", "This gateway keeps no figures over time."));
    show(byId("empty"), true);
    return;
  }
  const requests = traffic.totals.requests ?? 0;
  const isEmpty = !requests && !Object.keys(traffic.requests_per_s).length;
  show(byId("empty"), isEmpty);
  show(byId("filled"), !isEmpty);
  if (isEmpty) {
    await showEmpty();
    return;
  }
  const models = Object.entries(traffic.models).sort(
    (a, b) => (a[0] === UNANSWERED) - (b[0] === UNANSWERED) || b[1].requests - a[1].requests,
  );
  models.forEach(([name]) => name !== UNANSWERED && colourOf(name));
  const saved = traffic.saved;
  showFigures(traffic, saved);
  showRequests(traffic, models);
  showCost(traffic, saved);
  showLatency(traffic);
  showSplit(models, requests);
}

async function showEmpty() {
  const status = await get("/api/status");
  const url = status.gateway_url || "http://127.0.0.1:8080";
  const body = '{"model": "auto", "messages": [{"role": "user", "content": "Why is the sky blue?"}]}';
  put(
    byId("empty"),
    blank(
      "No traffic yet",
      "Send a request to the gateway, or ask in the playground, and it shows here within seconds.",
      h("pre", {}, `curl ${url}/v1/chat/completions \\\n  -H 'content-type: application/json' \\\n  -d '${body}'`),
      h("p", { class: "legend-line" }, h("a", { href: "/playground" }, "Open the playground")),
    ),
  );
}

function figure(name, value, note) {
  return h("div", {}, h("dt", {}, name), h("dd", {}, value), note && h("p", {}, note));
}

function savedFigure(saved) {
  if (!saved) return figure("Saved, expected", "-", "needs a router, and a best model that costs");
  const share = percent(Math.abs(saved.saved_usd) / saved.always_best_usd);
  return saved.saved_usd < 0
    ? figure("Cost more, expected", usd(-saved.saved_usd), `${share} more than always ${saved.best_model}`)
    : figure("Saved, expected", usd(saved.saved_usd), `${share} of always ${saved.best_model}`);
}

function showFigures(traffic, saved) {
  const { totals } = traffic;
  const length = traffic.times.at(-1) - traffic.times[0] || 1;
  const failed = totals.requests ? totals.failed / totals.requests : 0;
  put(
    byId("figures"),
    figure("Requests", count(totals.requests), `${digits(totals.requests / length, 2)} per second`),
    figure("Failed", percent(failed), `${count(totals.fallbacks)} fell back; ${count(totals.refused)} refused (4xx), ${count(totals.limited)} limited`),
    figure("Latency, median", seconds(totals.p50_s), `95 % within ${seconds(totals.p95_s)}`),
    figure("Spent", usd(totals.cost_usd), `${usd(totals.requests ? (1000 * totals.cost_usd) / totals.requests : 0)} per 1,000`),
    savedFigure(saved),
    figure("In flight", count(traffic.in_flight), `${count(traffic.workers)} worker${traffic.workers === 1 ? "" : "s"}, ${bytes(traffic.resident_bytes)}`),
  );
}

function showRequests(traffic, models) {
  const series = models
    .map(([name]) => ({ name, values: traffic.requests_per_s[name], colour: colourOf(name) }))
    .filter((one) => one.values);
  timeChart(byId("requests"), {
    times: traffic.times, series, stacked: true, format: (v) => digits(v, 2),
    label: `Requests per second by model: ${models.map(([n, m]) => `${n} ${count(m.requests)}`).join(", ")}`,
  });
  setLegend("requests", series.map((one) => ({ name: one.name, colour: one.colour })));
}

function setLegend(id, items) {
  const place = byId(id);
  if (place.nextElementSibling?.classList.contains("legend")) place.nextElementSibling.remove();
  place.after(legend(items));
}

function showCost(traffic, saved) {
  const most = saved ? Math.max(saved.always_best_usd, saved.expected_usd, saved.billed_usd) : 0;
  const line = (name, value, tone) =>
    h("div", {}, h("span", {}, name), h("b", {}, usd(value)), bar(most ? value / most : 0, { tone }));
  put(
    byId("saved"),
    saved
      ? h(
          "div",
          { class: "saving" },
          line("Routed, expected", saved.expected_usd),
          line(`Always ${saved.best_model}, expected`, saved.always_best_usd, "none"),
          line("Routed, billed", saved.billed_usd, "none"),
          h("p", { class: "hint" }, `Over the ${count(saved.calls)} calls a router scored. What is expected is the router's estimate, made before each call: compare it with what is expected, not with the bill.`),
        )
      : h("p", { class: "hint" }, "No call of this period was scored by a router whose best model has a price above 0, so there is nothing to compare with."),
  );
  const [routed, always] = [running(traffic.expected_usd), running(traffic.always_best_usd)];
  const isCompared = traffic.always_best_usd?.some((value) => value > 0);
  const spent = running(traffic.cost_usd);
  timeChart(byId("cost"), {
    times: traffic.times,
    series: isCompared
      ? [
          { name: "always-best", values: always, colour: "var(--s7)", dashed: true },
          { name: "routed", values: routed, colour: "var(--accent)" },
        ]
      : [{ name: "spent", values: spent, colour: "var(--accent)" }],
    format: usd,
    label: `Money in this period, running sum: ${usd(spent.at(-1))} spent${isCompared ? `; expected ${usd(routed.at(-1))} routed, ${usd(always.at(-1))} always ${saved?.best_model ?? "the best"}` : ""}`,
  });
  setLegend("cost", [
    { name: isCompared ? "routed, expected, running sum" : "spent, running sum", colour: "var(--accent)" },
    ...(isCompared ? [{ name: `always ${saved?.best_model ?? "the best"}, expected (dashed)`, colour: "var(--s7)" }] : []),
  ]);
}

function running(values) {
  let sum = 0;
  return (values ?? []).map((value) => (sum += value));
}

function showLatency(traffic) {
  timeChart(byId("latency"), {
    times: traffic.times,
    series: [
      { name: "median", values: traffic.p50_s, colour: "var(--accent)" },
      { name: "95 %", values: traffic.p95_s, colour: "var(--s1)", dashed: true },
    ],
    logarithmic: true,
    format: seconds,
    label: `Latency: median ${seconds(traffic.totals.p50_s)}, 95 % within ${seconds(traffic.totals.p95_s)}`,
  });
  setLegend("latency", [
    { name: "median", colour: "var(--accent)" },
    { name: "95 % within (dashed)", colour: "var(--s1)" },
  ]);
  put(byId("phases"), phases(Object.entries(traffic.phases).map(([phase, value]) => ({ phase, ms: value }))));
}

function showSplit(models, requests) {
  put(
    byId("split"),
    table(
      [
        { title: "Model", cell: ([name]) => [h("i", { class: "swatch", style: { background: colourOf(name) } }), name] },
        { title: "Share", cell: ([, m]) => meter(m.requests / requests, percent(m.requests / requests)), meter: true },
        { title: "Requests", cell: ([, m]) => count(m.requests), num: true },
        { title: "Spent", cell: ([, m]) => usd(m.cost_usd), num: true },
        { title: "Per 1,000", cell: ([, m]) => usd((1000 * m.cost_usd) / m.requests), num: true },
        { title: "Median", cell: ([, m]) => seconds(m.p50_s), num: true },
        { title: "95 %", cell: ([, m]) => seconds(m.p95_s), num: true },
      ],
      models,
      { caption: "Requests by model" },
    ),
  );
}

poll(refresh);
byId("window").addEventListener("change", () => attempt(refresh));
