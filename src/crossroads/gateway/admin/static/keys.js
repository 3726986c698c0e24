// Virtual keys: who may ask, for what; made and revoked here.

import { attempt, get, optional, poll, say, send } from "./api.js";
import { blank, byId, h, put, show, table, tag } from "./dom.js";
import { moment, plain, unix } from "./format.js";

let canCreate = false;
let canRevoke = false;
let last = "";

async function refresh() {
  const [found, status] = await Promise.all([optional("/api/keys", "governance"), get("/api/status")]);
  canCreate = status.has?.includes("create_key") ?? false;
  canRevoke = status.has?.includes("revoke_key") ?? false;
  const keys = found?.keys ?? [];
  show(byId("empty"), !keys.length && !canCreate);
  show(byId("filled"), keys.length > 0 || canCreate);
  show(byId("new-panel"), canCreate);
  if (!keys.length && !canCreate) {
    put(byId("empty"), blank("No keys", "Everybody who reaches the gateway may ask. Give it keys, and they show here.", h("pre", {}, "crossroads keys create --name laptop --team research")));
    return;
  }
  const text = JSON.stringify(keys);
  if (text === last) return;
  last = text;
  put(byId("list"), keys.length ? list(keys) : h("p", { class: "hint" }, "There is no key yet: everybody may ask until the first one is made."));
}

function list(keys) {
  const columns = [
    { title: "Key", cell: (key) => [key.name, marks(key), key.fingerprint && h("span", { class: "sub mono" }, key.fingerprint)] },
    { title: "Team", cell: (key) => key.team || "-" },
    { title: "Models", cell: (key) => (key.models ? plain(key.models) : "all"), wide: true },
    { title: "Data may go to", cell: (key) => (key.residency?.length ? key.residency.join(", ") : "anywhere") },
    { title: "Limits", cell: limits, wide: true },
    { title: "Expires", cell: (key) => (unix(key.expires) ? moment(unix(key.expires)) : "never") },
  ];
  if (canRevoke) columns.push({ title: "", cell: (key) => (key.source === "config" ? tag("in the configuration") : revoke(key.name)), num: true });
  return table(columns, keys, { caption: "Keys" });
}

function limits(key) {
  const ofTeam = key.team_limits ?? [];
  return [key.limits.join(", ") || (ofTeam.length ? "none of its own" : "none"), ofTeam.length > 0 && h("span", { class: "sub" }, `with its team: ${ofTeam.join(", ")}`)];
}

function marks(key) {
  if (key.disabled) return [" ", tag("disabled", "warn")];
  return key.expired ? [" ", tag("expired", "warn")] : null;
}

// Asks in place rather than with a dialog: the first press arms, the second does it.
function revoke(name) {
  const button = h("button", { type: "button", class: "quiet danger", "data-focus": `revoke ${name}`, "aria-label": `Revoke ${name}` }, "Revoke");
  const disarm = () => {
    button.textContent = "Revoke";
    delete button.dataset.armed;
  };
  button.addEventListener("blur", disarm);
  button.addEventListener("click", async () => {
    if (!button.dataset.armed) {
      button.dataset.armed = "yes";
      button.textContent = "Really revoke";
      say(`Press again to revoke ${name}.`);
      return;
    }
    const done = await attempt(() => send("DELETE", `/api/keys/${encodeURIComponent(name)}`));
    if (done) {
      say(`${name} is revoked.`);
      last = "";
      await attempt(refresh);
    }
  });
  return button;
}

function showSecret(key) {
  const code = h("code", {}, key.secret);
  const copy = h("button", { type: "button" }, "Copy");
  copy.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(key.secret);
      copy.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(code);
    }
  });
  put(byId("secret"), h("p", {}, h("b", {}, `The secret of ${key.name}.`), " It is shown once and kept only as a hash."), code, copy);
  show(byId("secret"), true);
  say("The key is made. Its secret is on the page.");
  copy.focus();
}

byId("new").addEventListener("submit", async (event) => {
  event.preventDefault();
  const given = new FormData(event.target);
  const models = given.get("models").split(",").map((name) => name.trim()).filter(Boolean);
  const body = { name: given.get("name").trim(), team: given.get("team").trim(), models: models.length ? models : null };
  const key = await attempt(() => send("POST", "/api/keys", body));
  if (!key) return;
  event.target.reset();
  showSecret(key);
  last = "";
  await attempt(refresh);
});
poll(refresh, 10000);
