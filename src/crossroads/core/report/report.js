"use strict";
// The plotting library stands in the page compressed: a report is 2 MB instead of 5.
const loadLibrary = async () => {
  const packed = atob(document.getElementById("library").textContent);
  const bytes = Uint8Array.from(packed, (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  const script = document.createElement("script");
  script.textContent = await new Response(stream).text();
  document.head.append(script);
};

const start = () => {
  const plots = JSON.parse(document.getElementById("plot-data").textContent);
  const narrow = () => window.innerWidth < 640;
  const colour = (name) =>
    getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();
  // Plotly reads a few HTML tags in texts; names are to be shown as they are.
  const plain = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;");
  const number = (value) => (value === null ? "-" : Number(value.toPrecision(4)).toString());

  // On a phone a long name would leave no room for the plot.
  const short = (text, room) =>
    plain(narrow() && text.length > room ? text.slice(0, room - 2) + "..." : text);
  const named = (names) =>
    ({ tickmode: "array", tickvals: names.map(plain), ticktext: names.map((name) => short(name, 16)) });

  // Plotly labels a log axis by decade, or by bare digits within one; whole numbers read better.
  function logTicks(values) {
    const known = values.filter((value) => value > 0);
    const [low, high] = [Math.min(...known), Math.max(...known)];
    const steps = high / low > 12 ? [1, 2, 5] : [1, 1.5, 2, 3, 4, 5, 6, 8];
    const ticks = [];
    for (let e = Math.floor(Math.log10(low)); e <= Math.log10(high); e++) {
      for (const step of steps) ticks.push(Number((step * 10 ** e).toPrecision(2)));
    }
    return { type: "log", tickmode: "array", tickvals: ticks, ticktext: ticks.map(String) };
  }

  function layout(more) {
    const axis = {
      gridcolor: colour("line"), zerolinecolor: colour("muted"), linecolor: colour("line"),
      tickcolor: colour("line"), automargin: true, fixedrange: narrow(),
    };
    return {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: getComputedStyle(document.body).fontFamily, size: 12.5, color: colour("ink") },
      hoverlabel: { bgcolor: colour("card"), bordercolor: colour("muted"), font: { color: colour("ink") }, align: "left" },
      margin: { l: narrow() ? 44 : 60, r: 14, t: 8, b: more.bottom || 48 },
      ...more,
      xaxis: { ...axis, ...more.xaxis }, yaxis: { ...axis, ...more.yaxis },
    };
  }

  function curves(plot, state) {
    const symbols = ["star", "x", "triangle-up", "square", "cross", "triangle-down", "hexagon"];
    const dashes = ["solid", "dash", "dashdot", "longdash", "2px,2px", "8px,2px,2px,2px,2px,2px", "10px,6px"];
    let next = 0;
    let marked = 0;
    let bounds = 0;
    let plainLines = 0;
    // A phone has no room for curves that wait in the legend.
    const chosen = plot.series.filter((series) => !(series.hidden && narrow()));
    const traces = chosen.map((series) => {
      const hue = series.role === "router" ? colour("c" + (next++ % 10)) : colour(series.role);
      const parts = [series.line ? "lines" : "", series.marks ? "markers" : ""].filter(Boolean);
      // Baselines share a grey; what tells their curves apart is the dash.
      const ofBaseline = dashes[plainLines % dashes.length];
      const dash = { reference: "dot", bound: ["dash", "longdashdot"][bounds % 2], baseline: ofBaseline }[series.role] || "solid";
      if (series.role === "bound") bounds++;
      if (series.role === "baseline") plainLines++;
      return {
        type: "scatter", name: short(series.name, 30), x: series.x, y: series.y, mode: parts.join("+"),
        visible: series.hidden ? "legendonly" : true,
        line: { color: hue, width: series.role === "router" ? 2.4 : 1.8, dash },
        marker: {
          color: series.role === "baseline" ? colour("ink") : hue, size: series.role === "baseline" ? 11 : 8,
          symbol: series.role === "baseline" ? symbols[marked++ % symbols.length] : "diamond",
          line: { color: colour("card"), width: 1 },
        },
        text: series.label.map(plain),
        hovertemplate: (series.label.length ? "<b>%{text}</b><br>" : "<b>" + plain(series.name) + "</b><br>") +
          plain(plot.x_label) + " %{x:.4g}<br>" + plain(plot.y_label) + " %{y:.4g}<extra></extra>",
      };
    });
    return [traces, layout({
      bottom: narrow() ? 60 + 19 * chosen.length : 48, height: narrow() ? 330 + 19 * chosen.length : 500, hovermode: "closest",
      xaxis: {
        title: { text: plain(plot.x_label), standoff: 8 }, zeroline: false,
        ...(state.log ? logTicks(plot.series.flatMap((series) => series.x)) : { type: "linear" }),
      },
      yaxis: { title: { text: plain(plot.y_label), standoff: 8 }, zeroline: false },
      legend: narrow()
        ? { yref: "container", y: 0, yanchor: "bottom", x: 0, maxheight: 19 * chosen.length + 12, font: { size: 11.5 } }
        : { x: 1.02, y: 1, font: { size: 12.5 } },
    })];
  }

  function bars(plot) {
    const below = (bar) => plot.from_zero && bar.value < 0;
    const hues = plot.bars.map((bar) => colour(bar.role !== "router" ? bar.role : below(bar) ? "low" : "c1"));
    const reach = (end) => plot.bars.map((bar) => (bar[end] === null ? 0 : Math.abs(bar[end] - bar.value)));
    const error_x = {
      type: "data", symmetric: false, array: reach("high"), arrayminus: reach("low"),
      color: colour("ink"), thickness: 1.2, width: 4,
    };
    const hover = plot.bars.map((bar) => "<b>" + plain(bar.name) + "</b><br>" + number(bar.value) +
      (bar.low === null ? "" : " [" + number(bar.low) + ", " + number(bar.high) + "]"));
    const common = {
      x: plot.bars.map((bar) => bar.value), y: plot.bars.map((bar) => plain(bar.name)), orientation: "h",
      error_x: plot.bars.some((bar) => bar.low !== null) ? error_x : undefined,
      hovertext: hover, hoverinfo: "text",
    };
    const trace = plot.from_zero
      ? { ...common, type: "bar", marker: { color: hues, opacity: 0.85 } }
      : { ...common, type: "scatter", mode: "markers", marker: { color: hues, size: 10 } };
    return [[trace], layout({
      height: 78 + 27 * plot.bars.length, bargap: 0.35, showlegend: false,
      xaxis: {
        title: { text: plain(plot.x_label), standoff: 8 }, zeroline: plot.from_zero,
        ...(plot.log_x ? logTicks(plot.bars.map((bar) => bar.value)) : { type: "linear" }),
      },
      yaxis: {
        ...named(plot.bars.map((bar) => bar.name)), autorange: "reversed", type: "category", ticks: "", showgrid: !plot.from_zero, ticklabelstandoff: 6,
      },
    })];
  }

  function heat(plot) {
    const trace = {
      type: "heatmap", x: plot.columns.map(plain), y: plot.rows.map(plain), z: plot.values,
      zmin: -plot.limit, zmax: plot.limit, xgap: 2, ygap: 2,
      colorscale: [[0, colour("low")], [0.5, colour("mid")], [1, colour("high")]],
      colorbar: {
        thickness: 10, outlinewidth: 0, len: narrow() ? 0.7 : 1,
        title: { text: plain(plot.unit), side: "right" }, ...(narrow() ? { orientation: "h", y: 1.02, yanchor: "bottom", len: 1 } : {}),
      },
      texttemplate: narrow() ? "" : "%{z:.1f}", textfont: { size: 11 },
      hovertemplate: "<b>%{y}</b><br>%{x}<br>%{z:.2f} " + plain(plot.unit) + "<extra></extra>",
    };
    return [[trace], layout({
      height: (narrow() ? 230 : 150) + (narrow() ? 22 : 28) * plot.rows.length,
      // Bare numbers along an axis would otherwise be read as a scale, with a line at 0.
      xaxis: {
        ...named(plot.columns), type: "category", title: { text: plain(plot.column_label), standoff: 8 }, zeroline: false,
        tickangle: plot.columns.every((name) => name.length < 4) ? 0 : narrow() ? -90 : -45, showgrid: false, ticks: "",
      },
      yaxis: {
        ...named(plot.rows), type: "category", title: { text: plain(plot.row_label), standoff: 8 }, zeroline: false,
        autorange: "reversed", showgrid: false, ticks: "",
      },
    })];
  }

  const makers = { curves, bars, heat };
  const positive = (plot) => plot.series.every((series) => series.x.every((x) => x === null || x > 0));
  const states = plots.map((plot) => ({ log: plot.kind === "curves" && plot.log_x && positive(plot) }));

  function draw(index) {
    const [traces, shape] = makers[plots[index].kind](plots[index], states[index]);
    return Plotly.react("plot-" + index, traces, shape, {
      responsive: true, displaylogo: false, displayModeBar: false,
    });
  }

  function addSwitch(index) {
    const label = document.createElement("label");
    const box = document.createElement("input");
    label.className = "switch";
    box.type = "checkbox";
    box.checked = states[index].log;
    box.addEventListener("change", () => { states[index].log = box.checked; draw(index); });
    label.append(box, "log scale");
    document.getElementById("plot-" + index).before(label);
  }

  function sortBy(header, index) {
    const table = header.closest("table");
    const body = table.tBodies[0];
    const before = header.getAttribute("aria-sort");
    const flipped = { ascending: "descending", descending: "ascending" };
    const order = before ? flipped[before] : header.dataset.first || "ascending";
    table.querySelectorAll("thead th").forEach((other) => other.removeAttribute("aria-sort"));
    header.setAttribute("aria-sort", order);
    const sign = order === "ascending" ? 1 : -1;
    const key = (row) => {
      const cell = row.cells[index];
      if (index === 0) return cell.textContent.trim();
      return "value" in cell.dataset ? Number(cell.dataset.value) : null;
    };
    const compare = (a, b) => {
      const [x, y] = [key(a), key(b)];
      if (x === null || y === null) return (x === null) - (y === null);
      return sign * (typeof x === "string" ? x.localeCompare(y) : x - y);
    };
    [...body.rows].sort(compare).forEach((row) => body.append(row));
  }

  document.querySelectorAll("#leaderboard thead th").forEach((header, index) => {
    header.querySelector("button").addEventListener("click", () => sortBy(header, index));
  });
  plots.forEach((_, index) => { if (states[index].log) addSwitch(index); });
  const drawAll = () => Promise.all(plots.map((_, index) => draw(index)));
  // From scratch: an update in place would leave parts of the old shape behind.
  const redraw = () => {
    plots.forEach((_, index) => Plotly.purge("plot-" + index));
    drawAll();
  };
  drawAll().then(() => document.body.setAttribute("data-drawn", "yes"));
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  window.matchMedia("(max-width: 639px)").addEventListener("change", redraw);
};

loadLibrary().then(start);
