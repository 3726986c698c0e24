// The deployed router's frontier, with a slider that previews another operating point.

import { attempt, get, optional, problem, say } from "./api.js";
import { legend } from "./charts.js";
import { blank, byId, h, meter, put, show, table, tag } from "./dom.js";
import { digits, percent, plain, usd } from "./format.js";
import { frontierChart } from "./frontier.js";

let current = null; // the frontier of the chosen policy
let preview = null;
let asked = 0;

const slider = byId("price");
const byCost = (a, b) => a.cost_usd - b.cost_usd;
const path = (policy, price) =>
  `/api/frontier?policy=${encodeURIComponent(policy)}${price === undefined ? "" : `&price=${price}`}`;

async function start() {
  const policies = (await optional("/api/policies", "policies")) ?? {};
  const names = Object.keys(policies);
  show(byId("policies-panel"), names.length > 0);
  put(byId("policies"), policyTable(policies));
  const drawable = names.filter((name) => policies[name].frontier);
  put(byId("policy"), drawable.map((name) => h("option", { value: name }, name)));
  show(byId("policy-field"), drawable.length > 1);
  if (drawable.length) await choose(drawable[0]);
  else showEmpty("No learned router is deployed", "Fit one and name it in a policy of the configuration; its measured quality and cost show here.");
}

function showEmpty(title, text) {
  show(byId("empty"), true);
  show(byId("filled"), false);
  put(byId("empty"), blank(title, text, h("pre", {}, "crossroads fit auto --outcomes local --out runs/auto\ncrossroads serve --router runs/auto --pool local")));
}

async function choose(policy) {
  try {
    current = { policy, ...(await get(path(policy))) };
  } catch (error) {
    showEmpty("No frontier for this policy", error.message);
    return;
  }
  current.points = [...(current.points ?? [])].sort(byCost);
  current.models ??= [];
  if (!current.points.length) {
    showEmpty("No frontier for this policy", "The router has not seen a prompt since the start, or knows no costs. Send some traffic, and its estimates draw the frontier.");
    return;
  }
  show(byId("empty"), false);
  show(byId("filled"), true);
  preview = null;
  byId("source").textContent = current.source ?? "";
  slider.max = current.points.length - 1;
  slider.disabled = current.points.length < 2;
  slider.value = nearest(current.operating);
  describe();
}

function nearest(point) {
  if (!point) return 0;
  const gap = (p) => Math.abs(p.cost_usd - point.cost_usd) / (point.cost_usd || 1) + Math.abs(p.quality - point.quality);
  return current.points.reduce((best, p, i, all) => (gap(p) < gap(all[best]) ? i : best), 0);
}

function describe() {
  const shown = preview ?? current.operating;
  const unit = current.unit ?? "USD per 1,000 prompts";
  frontierChart(byId("frontier"), { ...current, preview, unit });
  const place = byId("frontier");
  if (place.nextElementSibling?.classList.contains("legend")) place.nextElementSibling.remove();
  place.after(
    legend([
      { name: "router", colour: "var(--accent)" },
      { name: "single models", colour: "var(--ink-2)" },
      ...(current.measured ? [{ name: "measured on held-out prompts", colour: "var(--s3)" }] : []),
      ...(preview ? [{ name: "preview", colour: "var(--s1)" }] : []),
    ]),
  );
  byId("measured").textContent = measured();
  slider.setAttribute("aria-valuetext", shown ? `quality ${digits(shown.quality)}, ${usd(shown.cost_usd)} ${unit}` : "");
  byId("back").disabled = !preview;
  put(byId("compare"), compare(unit));
  showShares(shown);
}

function compare(unit) {
  const [now, then] = [current.operating, preview];
  const change = (a, b) => (a ? `${b >= a ? "+" : ""}${percent(b / a - 1, Math.abs(b / a - 1) < 1 ? 1 : 0)}` : "");
  const rows = [
    ["Quality", digits(now?.quality), then && digits(then.quality), now && then ? change(now.quality, then.quality) : ""],
    ["Cost", usd(now?.cost_usd), then && usd(then.cost_usd), now && then ? change(now.cost_usd, then.cost_usd) : ""],
    ["Price", price(now), then && price(then), ""],
  ];
  return [
    h(
      "table",
      {},
      h("thead", {}, h("tr", {}, ["", "Deployed", "Preview", ""].map((t) => h("th", { scope: "col", class: "num" }, t)))),
      h("tbody", {}, rows.map(([name, ...cells]) => h("tr", {}, h("th", { scope: "row" }, name), cells.map((c) => h("td", { class: "num" }, c || (c === "" ? "" : "-")))))),
    ),
    h("p", { class: "hint" }, `Cost in ${unit}; price in quality per USD, 0 for quality at any cost.`),
  ];
}

function measured() {
  const [router, best] = [current.measured, current.best_single];
  if (!router) return "";
  const versus = best ? `; ${best.model} alone ${digits(best.quality)} at ${usd(best.cost_usd)}` : "";
  return `Measured on held-out prompts when it was fitted: quality ${digits(router.quality)} at ${usd(router.cost_usd)}${versus}.`;
}

const price = (point) => (point?.price === undefined || point?.price === null ? "-" : digits(point.price, 3));

function showShares(point) {
  const shares = Object.entries(point?.shares ?? {}).sort((a, b) => b[1] - a[1]);
  byId("shares-unit").textContent = preview ? "at the previewed point" : "at the deployed point";
  put(
    byId("shares"),
    shares.length
      ? table(
          [
            { title: "Model", cell: ([name]) => name },
            { title: "Share", cell: ([, share]) => meter(share, percent(share, 1)), meter: true },
          ],
          shares,
          { caption: "Share of prompts by model" },
        )
      : h("p", { class: "hint" }, preview && preview.price !== undefined && !preview.shares ? "Asking the router." : "The shares of this point are not known."),
  );
}

const SAID = new Set(["kind", "models", "name", "version", "frontier", "objective"]);

function more(policy) {
  const rest = Object.entries(policy).filter(([name, value]) => !SAID.has(name) && value !== null && typeof value !== "object");
  return rest.length > 0 && h("span", { class: "hint" }, plain(Object.fromEntries(rest)));
}

function policyTable(policies) {
  return table(
    [
      { title: "Name", cell: ([name]) => name },
      { title: "Kind", cell: ([, p]) => tag(p.kind ?? "unknown") },
      { title: "Models", cell: ([, p]) => plain(p.models), wide: true },
      { title: "Objective", cell: ([, p]) => plain(p.objective ?? "-") },
      { title: "More", cell: ([, p]) => more(p) },
    ],
    Object.entries(policies),
    { caption: "Policies" },
  );
}

slider.addEventListener("input", () => {
  preview = current.points[Number(slider.value)];
  describe();
  const turn = (asked += 1);
  setTimeout(async () => {
    if (turn !== asked || preview?.price === undefined || preview.price === null) return;
    try {
      const found = await get(path(current.policy, preview.price));
      if (turn === asked && found.preview) {
        preview = { ...preview, ...found.preview };
        describe();
      }
    } catch (error) {
      problem(error.message);
    }
  }, 200);
});
byId("back").addEventListener("click", () => {
  asked += 1;
  preview = null;
  slider.value = nearest(current.operating);
  describe();
  slider.focus();
  say("Back at the deployed point.");
});
byId("policy").addEventListener("change", (event) => attempt(() => choose(event.target.value)));
attempt(start).finally(() => {
  document.body.dataset.ready = "yes";
});
