// Money by period: what is spent, and whether it is ahead of the period.

import { optional, poll } from "./api.js";
import { bar, blank, byId, h, put, show, tag } from "./dom.js";
import { digits, percent, span, unix, usd } from "./format.js";

async function refresh() {
  const budgets = (await optional("/api/budgets", "governance"))?.budgets ?? [];
  show(byId("empty"), !budgets.length);
  show(byId("filled"), budgets.length > 0);
  if (!budgets.length) {
    put(byId("empty"), blank("No budgets", "A key or a team may have money per period; a paced one is spread over it.", h("pre", {}, "governance:\n  teams:\n    research: {budgets: [{usd: 50, per: week, pace: true}]}")));
    return;
  }
  put(byId("list"), budgets.map(row));
}

function row(budget) {
  const share = budget.usd ? budget.spent_usd / budget.usd : 0;
  const due = budget.elapsed_share;
  const isPaced = budget.paced && due !== undefined && due !== null;
  const ahead = isPaced ? share - due : 0;
  const tone = share >= 1 ? "bad" : ahead > 0.1 || share > 0.9 ? "warn" : undefined;
  const reset = unix(budget.reset_at);
  return h(
    "div",
    { class: "budget" },
    h(
      "div",
      { class: "budget-head" },
      h("span", {}, h("b", {}, budget.name || "default"), " ", budget.scope && tag(budget.scope), " ", budget.paced && tag("paced", "accent"), " ", share >= 1 && tag("used up", "bad")),
      h("span", {}, h("b", {}, usd(budget.spent_usd)), ` of ${usd(budget.usd)} per ${budget.period ?? "period"}`),
    ),
    bar(share, { tone, mark: due ?? undefined, label: `${budget.name}: ${percent(share)} spent` }),
    h(
      "p",
      { class: "hint" },
      h("span", {}, `${percent(share)} spent`),
      due !== undefined && due !== null && h("span", {}, `${percent(due)} of the period over`),
      isPaced && h("span", {}, pace(ahead)),
      budget.paced && h("span", {}, `price ${digits(budget.price ?? 0)} quality per USD`),
      reset && h("span", {}, `resets in ${span(Math.max(0, reset - Date.now() / 1e3))}`),
    ),
  );
}

function pace(ahead) {
  if (Math.abs(ahead) < 0.02) return "on pace";
  return ahead > 0 ? `${percent(ahead)} ahead of the pace` : `${percent(-ahead)} behind the pace`;
}

poll(refresh);
