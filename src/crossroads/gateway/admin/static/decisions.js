// Recent decisions, and one of them explained.

import { attempt, get, optional, poll, say } from "./api.js";
import { blank, byId, facts, h, put, show, table, tag } from "./dom.js";
import { clock, count, digits, known, moment, ms, plain, usd } from "./format.js";
import { attempts, phases, scores } from "./parts.js";

const form = byId("filters");
const chosen = () => decodeURIComponent(location.hash.slice(1));
let last = "";

function query() {
  const given = new URLSearchParams(new FormData(form));
  for (const [name, value] of [...given]) if (!value.trim()) given.delete(name);
  given.set("limit", "60");
  return given.toString();
}

async function refresh({ force } = {}) {
  if (!force && last && !byId("live").checked) return;
  const found = await optional(`/api/decisions?${query()}`, "decisions");
  const rows = found?.decisions ?? [];
  const isFiltered = query() !== "limit=60";
  const isEmpty = !found || (!rows.length && !isFiltered);
  show(byId("empty"), isEmpty);
  show(byId("filled"), !isEmpty);
  show(form, Boolean(found));
  if (isEmpty) {
    put(byId("empty"), found
      ? blank("No decisions yet", "Every call shows here with who answered and why.", h("p", { class: "legend-line" }, h("a", { href: "/playground" }, "Ask something in the playground")))
      : blank("Decisions are not kept", "Give the gateway a ledger, and every call shows here.", h("pre", {}, "ledger:\n  url: sqlite:crossroads.db")));
    return;
  }
  const text = JSON.stringify(rows);
  if (text !== last) {
    last = text;
    put(byId("list"), rows.length ? list(rows) : h("p", { class: "hint" }, "No call fits this filter."));
  }
  mark();
  if (!byId("detail").firstChild) await explain(chosen() || rows[0]?.decision_id);
}

function list(rows) {
  return table(
    [
      { title: "Time", cell: (r) => h("a", { class: "list-link", href: `#${encodeURIComponent(r.decision_id)}`, "data-focus": r.decision_id }, clock(r.time)), short: true },
      { title: "Asked", cell: (r) => r.asked || "-" },
      { title: "Answered by", cell: (r) => [h("a", { class: "list-link", href: `#${encodeURIComponent(r.decision_id)}`, tabindex: -1 }, r.model || "nobody"), notes(r)] },
      { title: "Outcome", cell: outcome, short: true },
      { title: "Tokens", cell: (r) => `${count(r.input_tokens)} + ${count(r.output_tokens)}`, num: true },
      { title: "Cost", cell: (r) => usd(r.cost_usd), num: true },
      { title: "Took", cell: (r) => ms(r.total_ms), num: true },
    ],
    rows,
    { caption: "Recent decisions, the newest first", rowProps: (r) => ({ "data-id": r.decision_id, onclick: () => pick(r.decision_id) }) },
  );
}

// The whole row is clickable; by keyboard its time is a link.
function pick(id) {
  if (getSelection().isCollapsed) location.hash = encodeURIComponent(id);
}

function notes(row) {
  const said = [];
  if (row.cache) said.push(`${row.cache} cache`);
  else if (!row.model && row.chosen) said.push(`${row.chosen} was chosen`);
  else if (row.chosen && row.model !== row.chosen) said.push(`in place of ${row.chosen}`);
  if (row.is_explored) said.push("explored");
  return said.length ? h("span", { class: "sub" }, said.join(", ")) : null;
}

function outcome(row) {
  if (row.status !== 200) return tag(row.status || "given up", "bad");
  return row.is_complete ? h("span", { class: "hint" }, row.finish || "answered") : tag("cut short", "warn");
}

function mark() {
  const shown = byId("detail").dataset.id;
  for (const row of byId("list").querySelectorAll("tr[data-id]")) {
    row.classList.toggle("on", row.dataset.id === shown);
  }
}

async function explain(id) {
  const place = byId("detail");
  if (!id) return;
  const found = await attempt(() => get(`/api/decisions/${encodeURIComponent(id)}`));
  if (!found) return;
  place.dataset.id = id;
  put(place, detail(found));
  mark();
}

// Another filter, another list: what was explained beside the old one may not be in it.
function forget() {
  const place = byId("detail");
  put(place);
  delete place.dataset.id;
  history.replaceState(null, "", location.pathname + location.search);
}

const SHOWN = ["scores", "costs", "probabilities", "attempts", "labels", "verdict", "prompt", "answer", "feedback"];

function detail({ summary, scores: items, attempts: tries, phases: times, row }) {
  const rest = Object.entries(row).filter(([name, value]) => !SHOWN.includes(name) && value !== null && value !== "");
  return [
    h("div", { class: "panel-head" }, h("h2", {}, moment(row.time)), outcome(row)),
    h("div", { class: "sentences" }, summary.map((text) => h("p", {}, text))),
    h("p", { class: "id mono" }, row.decision_id),
    items.length > 0 && [h("h3", {}, "Estimated for each model"), scores(items)],
    h("h3", {}, "Time"),
    phases(times),
    tries.length > 0 && [h("h3", {}, "Attempts"), attempts(tries)],
    row.prompt && [h("h3", {}, "Prompt"), h("p", { class: "answer" }, row.prompt)],
    row.answer && [h("h3", {}, "Answer"), h("p", { class: "answer" }, row.answer)],
    row.feedback?.length > 0 && [h("h3", {}, "Feedback"), row.feedback.map(judgement)],
    h("details", {}, h("summary", {}, "Everything recorded"), facts(rest.map(([name, value]) => [name.replaceAll("_", " "), plain(value)]))),
  ];
}

function judgement(one) {
  const said = [];
  if (known(one.score)) said.push(digits(one.score));
  if (one.preference) said.push(one.preference === "over" ? `better than ${one.other}` : `worse than ${one.other}`);
  return h("p", {}, `${said.join(", ")} by ${one.source || "user"}, ${clock(one.time)}`, one.comment && h("span", { class: "sub" }, one.comment));
}

const refreshNow = poll(refresh, 4000);
form.addEventListener("submit", async (event) => {
  event.preventDefault();
  last = "";
  forget();
  await attempt(() => refresh({ force: true }));
  say("Filtered.");
});
byId("live").addEventListener("change", refreshNow);
window.addEventListener("hashchange", async () => {
  await explain(chosen());
  if (window.innerWidth <= 1080) byId("detail").scrollIntoView();
  byId("detail").focus({ preventScroll: true });
});
