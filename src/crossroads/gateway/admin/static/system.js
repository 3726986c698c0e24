// Health of the parts, regret, drift, and the configuration.

import { attempt, get, optional, poll, send } from "./api.js";
import { byId, facts, h, put, state, table } from "./dom.js";
import { count, digits, plain } from "./format.js";

const TONES = { ok: "good", degraded: "warn", failing: "bad" };

async function refresh() {
  const [status, regret, drift] = await Promise.all([get("/api/status"), optional("/api/regret"), optional("/api/drift")]);
  put(byId("overall"), state(status.status, TONES[status.status] ?? "warn"));
  byId("config-path").textContent = status.config || "";
  byId("reload").disabled = !status.has.includes("reload");
  for (const id of ["check", "check-text"]) byId(id).disabled = !status.has.includes("check_config");
  const parts = Object.entries(status.parts ?? {});
  put(byId("parts"), parts.length ? partTable(parts) : h("p", { class: "hint" }, "No part reports its health."));
  put(byId("regret"), regret ? regretFacts(regret) : h("p", { class: "hint" }, "Not known: it needs a ledger, and feedback on served answers."));
  put(byId("drift"), drift ? driftFacts(drift) : h("p", { class: "hint" }, "Not watched: no deployed router holds what its training prompts looked like."));
}

function partTable(parts) {
  const rest = (part) => Object.fromEntries(Object.entries(part).filter(([name, value]) => !["status", "reason", "state"].includes(name) && value !== null));
  return table(
    [
      { title: "Part", cell: ([name]) => name },
      { title: "State", cell: ([, part]) => state(part.status, TONES[part.status] ?? "warn") },
      { title: "Says", cell: ([, part]) => [part.reason ?? "", h("span", { class: "sub" }, plain(rest(part)))], wide: true },
    ],
    parts,
    { caption: "Parts of the gateway" },
  );
}

function regretFacts(found) {
  if (found.regret === undefined || found.regret === null) return h("p", { class: "hint" }, found.message ?? "Not enough feedback yet.");
  return [
    facts([
      ["Regret", `${digits(found.regret)} quality per call`],
      ["Interval", found.low !== undefined && `${digits(found.low)} to ${digits(found.high)}`],
      ["Best fixed model", found.best_model],
      ["Calls", count(found.calls)],
    ]),
    h("p", { class: "hint legend-line" }, `Negative: the router does better than ${found.best_model ?? "it"}. ${found.method ?? ""}`),
  ];
}

function driftFacts(found) {
  return [
    h("p", {}, found.alarm ? state("The prompts no longer look like those the router learned from", "bad") : state("The prompts look like those the router learned from", "good")),
    h("div", { class: "legend-line" }, facts(Object.entries(found).filter(([name]) => !["alarm", "method"].includes(name)).map(([name, value]) => [name.replaceAll("_", " "), plain(value)]))),
    found.method && h("p", { class: "hint legend-line" }, found.method),
  ];
}

async function run(button, action) {
  button.disabled = true;
  const found = await attempt(action);
  button.disabled = false;
  if (found) put(byId("outcome"), outcome(found));
}

function outcome(found) {
  const problems = found.problems ?? [];
  const good = found.ok ?? !problems.length;
  return h(
    "div",
    { class: "notice" },
    state(found.message ?? (good ? "No problem found: a first request would be served." : `${problems.length} problem${problems.length === 1 ? "" : "s"} found`), good ? "good" : "bad"),
    problems.length > 0 && h("ul", {}, problems.map((text) => h("li", {}, plain(text)))),
  );
}

byId("reload").addEventListener("click", (event) => run(event.target, () => send("POST", "/api/reload", {})));
byId("check").addEventListener("click", (event) => run(event.target, () => send("POST", "/api/check-config", "")));
byId("check-text").addEventListener("click", (event) => run(event.target, () => send("POST", "/api/check-config", byId("yaml").value)));
poll(refresh, 10000);
