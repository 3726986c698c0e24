// Pieces that several views show: phases of a call, scores of the models, attempts.

import { bar, h, table, tag } from "./dom.js";
import { legend } from "./charts.js";
import { digits, ms, percent, seconds, usd } from "./format.js";

const PHASES = {
  queue: "var(--s1)", route: "var(--s0)", connect: "var(--s5)", relay: "var(--s2)",
};

// items: [{phase, ms}]. The bar splits the gateway's own time: the upstream's would hide it.
export function phases(items) {
  const total = items.reduce((sum, item) => sum + item.ms, 0);
  const upstream = items.find((item) => item.phase === "upstream")?.ms ?? 0;
  const mine = items.filter((item) => item.phase !== "upstream");
  const own = total - upstream;
  return h(
    "div",
    {},
    h(
      "p",
      { class: "totals" },
      h("span", {}, "Upstream ", h("b", {}, ms(upstream))),
      h("span", {}, "Gateway ", h("b", {}, ms(own)), ` (${percent(total ? own / total : 0, 2)})`),
    ),
    h("p", { class: "hint" }, "The gateway's part, split:"),
    h(
      "div",
      { class: "parts", role: "img", "aria-label": `The gateway's part: ${mine.map((i) => `${i.phase} ${ms(i.ms)}`).join(", ")}` },
      mine.map((i) => h("i", { style: { width: `${own ? (100 * i.ms) / own : 0}%`, background: PHASES[i.phase] } })),
    ),
    legend(mine.map((i) => ({ name: i.phase, value: ms(i.ms), colour: PHASES[i.phase] }))),
  );
}

export function scores(items) {
  return h(
    "div",
    { class: "scores" },
    items.map((item) =>
      h(
        "div",
        { class: "score" },
        h("span", {}, item.model, " ", item.is_chosen && tag("chosen", "accent"), " ", item.is_answering && !item.is_chosen && tag("answered")),
        h(
          "span",
          {},
          [
            item.quality !== null && item.quality !== undefined && `quality ${digits(item.quality)}`,
            item.cost_usd !== null && item.cost_usd !== undefined && usd(item.cost_usd),
            item.probability !== null && item.probability !== undefined && `p ${digits(item.probability, 2)}`,
          ].filter(Boolean).join("  /  "),
        ),
        bar(item.quality ?? item.probability ?? 0, { tone: item.is_chosen ? undefined : "none" }),
      ),
    ),
  );
}

export function attempts(items) {
  return table(
    [
      { title: "Model", cell: (one) => one.model },
      { title: "Outcome", cell: (one) => (one.status === 200 ? tag("answered", "accent") : tag(outcome(one), "bad")) },
      { title: "Time", cell: (one) => seconds(one.seconds), num: true },
    ],
    items,
    { caption: "Attempts" },
  );
}

function outcome(one) {
  const status = one.status ? String(one.status) : "given up";
  return one.code ? `${status} ${one.code}` : status;
}
