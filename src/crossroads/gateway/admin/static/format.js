// Numbers and times as people read them. A figure nobody has is "-".

const NONE = "-";
export const known = (value) => typeof value === "number" && Number.isFinite(value);
const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const compact = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });

export function count(value) {
  if (!known(value)) return NONE;
  return Math.abs(value) >= 1e5 ? compact.format(value) : whole.format(value);
}

export function digits(value, places = 3) {
  if (!known(value)) return NONE;
  if (value === 0) return "0";
  const size = Math.floor(Math.log10(Math.abs(value)));
  return value.toFixed(Math.max(0, Math.min(8, places - 1 - size)));
}

export function usd(value) {
  if (!known(value)) return NONE;
  if (value === 0) return "$0";
  const sign = value < 0 ? "-" : "";
  const size = Math.abs(value);
  if (size >= 1000) return `${sign}$${whole.format(size)}`;
  if (size >= 0.995) return `${sign}$${size.toFixed(2)}`;
  if (size < 1e-7) return `${sign}<$0.0000001`;
  return `${sign}$${size.toFixed(Math.min(8, 1 - Math.floor(Math.log10(size))))}`;
}

export function percent(value, places) {
  if (!known(value)) return NONE;
  const shown = 100 * value;
  const given = places ?? (shown !== 0 && Math.abs(shown) < 10 ? 1 : 0);
  return `${shown.toFixed(given)} %`;
}

export function seconds(value) {
  if (!known(value)) return NONE;
  if (value < 1e-3) return `${digits(value * 1e6, 2)} us`;
  if (value < 1) return `${digits(value * 1e3, value < 0.1 ? 2 : 3)} ms`;
  if (value < 120) return `${value.toFixed(value < 10 ? 2 : 1)} s`;
  return span(value);
}

export const ms = (value) => (known(value) ? seconds(value / 1e3) : NONE);

export function span(value) {
  if (!known(value)) return NONE;
  const units = [["d", 86400], ["h", 3600], ["min", 60]];
  for (const [index, [name, size]] of units.entries()) {
    if (value >= size) {
      const most = Math.floor(value / size);
      const next = units[index + 1];
      const rest = next ? Math.floor((value - most * size) / next[1]) : 0;
      return rest ? `${most} ${name} ${rest} ${next[0]}` : `${most} ${name}`;
    }
  }
  return `${Math.round(value)} s`;
}

export function bytes(value) {
  return known(value) ? `${Math.round(value / 2 ** 20)} MiB` : NONE;
}

export function clock(unix) {
  return known(unix) ? new Date(unix * 1e3).toLocaleTimeString([], { hour12: false }) : NONE;
}

export function moment(unix) {
  if (!known(unix)) return NONE;
  return new Date(unix * 1e3).toLocaleString([], { dateStyle: "medium", timeStyle: "medium", hour12: false });
}

export function ago(unix) {
  return known(unix) ? `${span(Math.max(0, Date.now() / 1e3 - unix))} ago` : NONE;
}

// "2026-11-22T10:00:00Z" or Unix seconds to Unix seconds.
export function unix(value) {
  if (known(value)) return value;
  const parsed = Date.parse(value ?? "");
  return Number.isNaN(parsed) ? undefined : parsed / 1e3;
}

// A value by its name: a moment where the name says so.
const EPOCH = 1e9; // Unix seconds since 2001 are larger
export const named = (name, value) => (/(_at|time)$/.test(name) && value > EPOCH ? moment(value) : plain(value));

// What is not empty, not zero and not null of plain data.
export function told(value) {
  if (Array.isArray(value)) return value.length ? value : undefined;
  if (value === null || typeof value !== "object") return value || undefined;
  const kept = Object.entries(value).map(([name, item]) => [name, told(item)]).filter(([, item]) => item !== undefined);
  return kept.length ? Object.fromEntries(kept) : undefined;
}

// Facts of unknown shape as one line of text.
export function plain(value) {
  if (value === null || value === undefined) return NONE;
  if (Array.isArray(value)) return value.map(plain).join(", ") || "none";
  if (typeof value === "object")
    return Object.entries(value).map(([name, item]) => `${name.replaceAll("_", " ")} ${named(name, item)}`).join(", ");
  if (typeof value === "boolean") return value ? "yes" : "no";
  if (typeof value === "number") return Number.isInteger(value) || Math.abs(value) >= 1e3 ? whole.format(value) : String(Number(value.toPrecision(3)));
  return String(value);
}
