// Talks to the server, polls while the page is seen, and says what went wrong.

import { byId } from "./dom.js";

const csrf = document.querySelector('meta[name="csrf-token"]').content;

export class Refusal extends Error {
  constructor(status, code, message) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

async function call(path, options = {}) {
  let response;
  try {
    response = await fetch(path, { credentials: "same-origin", ...options });
  } catch {
    throw new Refusal(0, "unreachable", "The gateway cannot be reached. Trying again.");
  }
  if (response.status === 401) {
    location.assign(`/login?next=${encodeURIComponent(location.pathname)}`);
  }
  if (response.status === 204) return null;
  const body = await response.json().catch(() => ({}));
  if (!response.ok) {
    throw new Refusal(response.status, body.error?.code, body.error?.message ?? `Status ${response.status}.`);
  }
  return body;
}

export const get = (path) => call(path);

export function send(method, path, body, headers = {}) {
  const isText = typeof body === "string";
  return call(path, {
    method,
    headers: { "x-csrf-token": csrf, "content-type": isText ? "text/plain" : "application/json", ...headers },
    body: body === undefined ? undefined : isText ? body : JSON.stringify(body),
  });
}

let parts; // what this gateway has, asked once

// The value of a path, or null where this gateway lacks the part it comes from.
export async function optional(path, part) {
  parts ??= call("/api/status").then(
    (status) => status.has,
    (error) => {
      parts = undefined;
      throw error;
    },
  );
  return (await parts).includes(part) ? call(path) : null;
}

export function problem(message) {
  const place = byId("problem");
  if (place.textContent !== message) place.textContent = message;
  place.hidden = !message;
}

// Says something to those who listen rather than look.
export function say(message) {
  byId("said").textContent = message;
}

// Runs an action, and shows its error as the page's problem.
export async function attempt(action) {
  try {
    const value = await action();
    problem("");
    return value;
  } catch (error) {
    problem(error.message);
    return undefined;
  }
}

// Calls `refresh` now and every `period` milliseconds while somebody looks; returns "now, please".
export function poll(refresh, period = 5000) {
  let timer = 0;
  let running = null;
  const run = async () => {
    clearTimeout(timer);
    timer = 0;
    await attempt(refresh);
    document.body.dataset.ready = "yes";
    if (!document.hidden) timer = setTimeout(start, period);
  };
  const start = () => {
    running ??= run().finally(() => {
      running = null;
    });
    return running;
  };
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) clearTimeout(timer);
    else start();
  });
  start();
  return async () => {
    await running;
    return start();
  };
}
