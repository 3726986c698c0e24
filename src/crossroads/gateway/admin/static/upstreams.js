// Health of every model: breaker, failures, latency, calls in flight, the last error.

import { get, optional, poll } from "./api.js";
import { blank, byId, h, meter, put, show, state, table } from "./dom.js";
import { ago, count, percent, seconds, span } from "./format.js";

const TONES = { closed: "good", "half-open": "warn", half_open: "warn", open: "bad" };
const WORDS = { closed: "serving", "half-open": "probing", half_open: "probing", open: "resting" };

async function refresh() {
  const [found, status] = await Promise.all([optional("/api/upstreams", "upstreams"), get("/api/status")]);
  const models = Object.entries(found ?? {});
  show(byId("empty"), !models.length);
  show(byId("filled"), models.length > 0);
  show(byId("figures"), models.length > 0);
  if (!models.length) {
    put(byId("empty"), blank("No upstreams", "A pool file says where the models are reached.", h("pre", {}, "crossroads serve --pool pool.yaml")));
    return;
  }
  const open = models.filter(([, m]) => m.state !== "closed");
  const failing = models.reduce((sum, [, m]) => sum + (m.num_failures ?? 0), 0);
  put(
    byId("figures"),
    figure("Serving", `${models.length - open.length}`, `of ${models.length} models`),
    figure("Resting or probing", `${open.length}`, open.map(([name]) => name).join(", ") || "none"),
    figure("In flight", count(models.reduce((sum, [, m]) => sum + (m.in_flight ?? 0), 0)), "calls at upstreams"),
    figure("Failures", count(failing), (status.workers ?? 1) > 1 ? `since the start, this worker (one of ${status.workers})` : "since the start"),
  );
  const workers = status.workers ?? 1;
  put(byId("list"), list(models), workers > 1 && h("p", { class: "hint legend-line" }, `State and calls in flight are of all ${workers} workers, the worst state of each model; the rest is of this worker, one of ${workers}.`));
}

const figure = (name, value, note) => h("div", {}, h("dt", {}, name), h("dd", {}, value), h("p", {}, note));

const tone = (share) => (share > 0.2 ? "bad" : share > 0.05 ? "warn" : "none");

function list(models) {
  return table(
    [
      { title: "Model", cell: ([name]) => name },
      { title: "State", cell: ([, m]) => [state(word(m), isFailing(m) ? "warn" : TONES[m.state] ?? "warn"), rest(m)], short: true },
      { title: "Failing", cell: ([, m]) => (m.num_recent === 0 ? h("span", { class: "hint" }, "no calls lately") : meter(m.failure_share, percent(m.failure_share), { tone: tone(m.failure_share) })), meter: true },
      { title: "Whole answer", cell: ([, m]) => seconds(m.answer_s), num: true },
      { title: "First token", cell: ([, m]) => seconds(m.first_event_s), num: true },
      { title: "In flight", cell: ([, m]) => count(m.in_flight), num: true },
      { title: "Calls", cell: ([, m]) => count(m.num_calls), num: true },
      { title: "Last error", cell: ([, m]) => (m.last_error ? [h("span", { class: "any" }, m.last_error), h("span", { class: "sub" }, ago(m.last_error_time))] : "none"), wide: true },
    ],
    models,
    { caption: "Models and their health" },
  );
}

// Its breaker lets calls through, and yet none of the last ones was answered.
const isFailing = (model) => model.state === "closed" && model.num_failed_in_row > 0;

function word(model) {
  if (model.waits_for_probe) return "waits for a probe";
  return isFailing(model) ? "serving, but failing" : WORDS[model.state] ?? model.state;
}

function rest(model) {
  if (model.state_of) return h("span", { class: "sub" }, `in ${model.state_of}`);
  if (isFailing(model)) return h("span", { class: "sub" }, model.num_failed_in_row === 1 ? "the last call failed" : `the last ${count(model.num_failed_in_row)} calls failed`);
  if (model.waits_for_probe) return h("span", { class: "sub" }, "the next call tells");
  if (model.state === "closed" || model.state_for_s === undefined) return null;
  const until = model.state === "open" && model.opens_for_s ? ` of ${span(model.opens_for_s)}` : "";
  return h("span", { class: "sub" }, `for ${span(model.state_for_s)}${until}`);
}

poll(refresh);
