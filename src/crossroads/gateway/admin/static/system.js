// Health of the parts, regret, drift, and the configuration.

import { attempt, get, optional, poll, send } from "./api.js";
import { byId, facts, h, put, state, table } from "./dom.js";
import { count, digits, named, percent, plain, told } from "./format.js";

const TONES = { ok: "good", degraded: "warn", failing: "bad" };

async function refresh() {
  const [status, regret, drift] = await Promise.all([get("/api/status"), optional("/api/regret", "regret"), optional("/api/drift", "drift")]);
  const workers = status.workers ?? 1;
  put(byId("overall"), state(status.status, TONES[status.status] ?? "warn"), workers > 1 && `, the worst of ${workers} workers`);
  byId("config-path").textContent = status.config || "";
  byId("reload").disabled = !status.has.includes("reload");
  for (const id of ["check", "check-text"]) byId(id).disabled = !status.has.includes("check_config");
  const parts = Object.entries(status.parts ?? {});
  const note = workers > 1 && h("p", { class: "hint legend-line" }, `A state is the worst of all workers; what a part says is of this worker, one of ${workers}.`);
  put(byId("parts"), parts.length ? [partTable(parts), note] : h("p", { class: "hint" }, "No part reports its health."));
  put(byId("regret"), regret ? regretFacts(regret) : h("p", { class: "hint" }, "Not known: it needs a ledger, and feedback on served answers."));
  put(byId("drift"), drift && Object.keys(drift).length ? driftFacts(drift) : h("p", { class: "hint" }, "Not watched: no learned policy has the section drift."));
}

function partTable(parts) {
  const rest = (part) => Object.fromEntries(Object.entries(part).filter(([name, value]) => !["status", "reason", "state"].includes(name) && value !== null));
  return table(
    [
      { title: "Part", cell: ([name]) => name },
      { title: "State", cell: ([, part]) => state(part.status, TONES[part.status] ?? "warn") },
      { title: "Says", cell: ([, part]) => [part.reason, says(rest(part))], wide: true },
    ],
    parts,
    { caption: "Parts of the gateway" },
  );
}

function says(part) {
  const known = Object.entries(told(part) ?? {});
  return known.length > 0 && facts(known.map(([name, value]) => [name.replaceAll("_", " "), named(name, value)]));
}

function regretFacts(found) {
  if (found.regret === undefined || found.regret === null) return h("p", { class: "hint" }, `Not known yet: ${found.why || "too few judged calls"}.`);
  return [
    facts([
      ["Regret", `${digits(found.regret)} quality per call`],
      ["Interval", found.low !== null && `${digits(found.low)} to ${digits(found.high)} (${percent(found.level ?? 0.95)})`],
      ["Best fixed model", found.best_model],
      ["Judged calls", `${count(found.calls)}${found.left_out ? `, and ${count(found.left_out)} left out on which not every model could be chosen` : ""}`],
    ]),
    h("p", { class: "hint legend-line" }, `Below 0 the router does better than always ${found.best_model}. By ${found.method}.`),
  ];
}

const DRIFT = {
  ok: ["like those it learned from", "good"],
  alarm: ["unlike those it learned from", "bad"],
  learning: ["too few to say", "none"],
};

function driftFacts(policies) {
  return Object.entries(policies).map(([name, found]) => {
    const [words, tone] = DRIFT[found.state] ?? [found.state, "warn"];
    const rest = Object.entries(found).filter(([key, value]) => key !== "state" && value !== null);
    return h(
      "div",
      { class: "budget" },
      h("p", {}, h("b", {}, name), " ", state(words, tone)),
      facts(rest.map(([key, value]) => [key.replaceAll("_", " "), plain(value)])),
    );
  });
}

async function run(button, action) {
  button.disabled = true;
  const found = await attempt(action);
  button.disabled = false;
  if (found) put(byId("outcome"), outcome(found));
}

function verdict(good, number) {
  if (!number) return "No problem found: a first request would be served.";
  const found = `${number} finding${number === 1 ? "" : "s"}`;
  return good ? `It would serve; ${found} to look at.` : `It would not serve: ${found}.`;
}

function outcome(found) {
  const problems = found.problems ?? [];
  const good = found.ok ?? !problems.length;
  return h(
    "div",
    { class: "notice" },
    state(found.message ?? verdict(good, problems.length), good ? (problems.length ? "warn" : "good") : "bad"),
    problems.length > 0 && h("ul", {}, problems.map((found) => h("li", {}, problemText(found)))),
  );
}

const problemText = (found) =>
  typeof found === "object" ? [found.level, found.place, found.message].filter(Boolean).join(": ") : String(found);

byId("reload").addEventListener("click", (event) => run(event.target, () => send("POST", "/api/reload", {})));
byId("check").addEventListener("click", (event) => run(event.target, () => send("POST", "/api/check-config", "")));
byId("check-text").addEventListener("click", (event) => run(event.target, () => send("POST", "/api/check-config", byId("yaml").value)));
poll(refresh, 10000);
