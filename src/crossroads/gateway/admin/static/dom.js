// Builds elements. Text is always text: nothing here parses markup.

const SVG = "http://www.w3.org/2000/svg";

function fill(element, props, children) {
  for (const [name, value] of Object.entries(props ?? {})) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "style") Object.assign(element.style, value);
    else if (name === "dataset") Object.assign(element.dataset, value);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  add(element, children);
  return element;
}

function add(element, children) {
  for (const child of children.flat(Infinity)) {
    if (child === undefined || child === null || child === false) continue;
    element.append(child instanceof Node ? child : document.createTextNode(String(child)));
  }
}

export const h = (tag, props, ...children) => fill(document.createElement(tag), props, children);
export const s = (tag, props, ...children) =>
  fill(document.createElementNS(SVG, tag), props, children);
export const byId = (id) => document.getElementById(id);

// Replaces what an element holds, and gives the focus back to what had it.
export function put(element, ...children) {
  const held = document.activeElement;
  const key = element.contains(held) ? held.dataset.focus : undefined;
  element.replaceChildren();
  add(element, children);
  if (key) element.querySelector(`[data-focus="${CSS.escape(key)}"]`)?.focus({ preventScroll: true });
}

export function show(element, visible) {
  if (element) element.hidden = !visible;
}

// Columns: {title, cell(row), num, short, wide, meter}. Rows become cards on a phone.
export function table(columns, rows, { caption, rowProps } = {}) {
  const className = (column) => (column.num ? "num" : column.short ? "short" : column.wide ? "wide" : column.meter ? "meters" : undefined);
  return h(
    "table",
    { class: "stack" },
    caption && h("caption", { class: "unseen" }, caption),
    h("thead", {}, h("tr", {}, columns.map((c) => h("th", { scope: "col", class: className(c) }, c.title)))),
    h(
      "tbody",
      {},
      rows.map((row) =>
        h(
          "tr",
          rowProps?.(row) ?? {},
          columns.map((c) =>
            h("td", { class: className(c), "data-label": c.title }, h("span", {}, c.cell(row))),
          ),
        ),
      ),
    ),
  );
}

export function facts(pairs) {
  const known = pairs.filter(([, value]) => value !== undefined && value !== null && value !== "");
  return h("dl", { class: "facts" }, known.map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]));
}

export function bar(share, { tone, mark, label } = {}) {
  const width = `${Math.max(0, Math.min(1, share || 0)) * 100}%`;
  return h(
    "div",
    { class: "bar", role: label ? "img" : undefined, "aria-label": label },
    h("i", { style: { width }, "data-tone": tone }),
    mark !== undefined && h("b", { style: { left: `${Math.min(1, Math.max(0, mark)) * 100}%` } }),
  );
}

// A bar and its figure, in one cell.
export function meter(share, text, options = {}) {
  return h("span", { class: "meter" }, bar(share, { label: text, ...options }), h("span", {}, text));
}

export const tag = (text, tone) => h("span", { class: "tag", "data-tone": tone }, text);
export const state = (text, tone) =>
  h("span", { class: "state" }, h("span", { class: "dot", "data-tone": tone, "aria-hidden": "true" }), text);

export function blank(title, text, ...more) {
  return h("div", { class: "blank" }, h("h2", {}, title), h("p", {}, text), more);
}
