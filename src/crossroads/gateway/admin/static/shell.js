// What every page has: health in the side bar, the theme, logging out.

import { attempt, get, send } from "./api.js";
import { byId, put, h } from "./dom.js";

const TONES = { ok: "good", degraded: "warn", failing: "bad" };
const WORDS = { ok: "All parts well", degraded: "Degraded", failing: "Failing" };
const THEMES = ["system", "light", "dark"];

function theme() {
  const given = document.documentElement.dataset.theme;
  return THEMES.includes(given) ? given : "system";
}

function setTheme(name) {
  if (name === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = name;
  byId("theme").textContent = `Theme: ${name}`;
  try {
    localStorage.setItem("crossroads-theme", name);
  } catch {
    // Then it holds for this page only.
  }
}

byId("theme").textContent = `Theme: ${theme()}`;
byId("theme").addEventListener("click", () => {
  setTheme(THEMES[(THEMES.indexOf(theme()) + 1) % THEMES.length]);
});
byId("logout")?.addEventListener("click", () =>
  attempt(async () => {
    await send("POST", "/logout");
    location.assign("/login");
  }),
);
document.querySelector(".side [aria-current]")?.scrollIntoView({ block: "nearest", inline: "center" });

async function health() {
  let tone = "bad";
  let word = "Not reachable";
  try {
    const status = (await get("/api/status")).status;
    [tone, word] = [TONES[status] ?? "warn", WORDS[status] ?? status];
  } catch {
    // The word says it.
  }
  put(byId("health"), h("span", { class: "dot", "data-tone": tone }), h("span", {}, word));
}

health();
setInterval(() => document.hidden || health(), 15000);
