// Asks the gateway in its own process, and shows who answered, why, and where the time went.

import { attempt, get, optional, send } from "./api.js";
import { blank, byId, facts, h, put, tag } from "./dom.js";
import { ms, usd } from "./format.js";
import { attempts, phases, scores } from "./parts.js";

const form = byId("form");
const result = byId("result");
let hasDecisions = false;

async function start() {
  const [models, status] = await Promise.all([optional("/api/models", "models"), get("/api/status")]);
  put(byId("models"), (models ?? []).map((m) => h("option", { value: m.name })));
  hasDecisions = status.has.includes("decision");
  if (!status.has.includes("playground")) {
    byId("send").disabled = true;
    put(result, blank("The playground is off", "This gateway does not answer from its admin server."));
    return;
  }
  put(result, blank("Nothing asked yet", "The answer shows here, with the decision behind it, the phases and the cost."));
}

function request() {
  const given = new FormData(form);
  const messages = [];
  if (given.get("system").trim()) messages.push({ role: "system", content: given.get("system") });
  messages.push({ role: "user", content: given.get("prompt") });
  const body = { model: given.get("model").trim(), messages };
  if (given.get("max_tokens")) body.max_tokens = Number(given.get("max_tokens"));
  if (given.get("temperature")) body.temperature = Number(given.get("temperature"));
  return body;
}

async function ask() {
  const button = byId("send");
  button.disabled = true;
  button.textContent = "Waiting";
  result.setAttribute("aria-busy", "true");
  const key = byId("key").value.trim();
  const reply = await attempt(() => send("POST", "/api/playground", request(), key ? { "x-gateway-key": key } : {}));
  button.disabled = false;
  button.textContent = "Send";
  result.setAttribute("aria-busy", "false");
  if (!reply) return;
  show(reply);
  const id = reply.headers["x-crossroads-decision-id"];
  const decision = id && hasDecisions && (await explained(id));
  if (decision) show(reply, decision);
}

// The ledger stores a little later than the gateway answers: the server waits for it.
async function explained(id) {
  try {
    return await get(`/api/decisions/${encodeURIComponent(id)}?wait=5`);
  } catch {
    return null;
  }
}

function timing(text) {
  return [...(text ?? "").matchAll(/(\w+);dur=([\d.]+)/g)].map(([, phase, value]) => ({ phase, ms: Number(value) }));
}

function show(reply, decision) {
  const { headers, answer } = reply;
  const message = answer?.choices?.[0]?.message;
  const text = typeof message?.content === "string" ? message.content : JSON.stringify(message ?? answer, null, 2);
  const failed = reply.status !== 200;
  const reason = headers["x-crossroads-reason"];
  const parts = decision?.phases ?? timing(headers["server-timing"]);
  put(
    result,
    h(
      "div",
      { class: "panel-head" },
      h("h2", {}, failed ? `Failed with status ${reply.status}` : `${answer?.model ?? headers["x-crossroads-model"]} answered`),
      failed ? tag(answer?.error?.code ?? "error", "bad") : tag(answer?.choices?.[0]?.finish_reason ?? "answered", "accent"),
    ),
    h("div", { class: "answer", role: "status" }, failed ? (answer?.error?.message ?? text) : text),
    decision ? h("div", { class: "sentences" }, decision.summary.map((line) => h("p", {}, line))) : reason && h("p", {}, `Why: ${reason}.`),
    h("h3", {}, "Cost and tokens"),
    facts([
      ["Cost", headers["x-crossroads-cost-usd"] !== undefined ? usd(Number(headers["x-crossroads-cost-usd"])) : undefined],
      ["Tokens", answer?.usage && `${answer.usage.prompt_tokens} in, ${answer.usage.completion_tokens} out`],
      ["Confidence", headers["x-crossroads-confidence"]],
      ["Overhead", headers["x-crossroads-overhead-ms"] && ms(Number(headers["x-crossroads-overhead-ms"]))],
    ]),
    parts.length > 0 && [h("h3", {}, "Time"), phases(parts)],
    decision?.scores.length > 0 && [h("h3", {}, "Estimated for each model"), scores(decision.scores)],
    decision?.attempts.length > 1 && [h("h3", {}, "Attempts"), attempts(decision.attempts)],
    h("details", {}, h("summary", {}, "Response headers"), facts(Object.entries(headers))),
    h("details", {}, h("summary", {}, "Response body"), h("pre", { tabindex: 0 }, JSON.stringify(answer, null, 2))),
  );
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  ask();
});
form.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    form.requestSubmit();
  }
});
attempt(start).finally(() => {
  document.body.dataset.ready = "yes";
});
