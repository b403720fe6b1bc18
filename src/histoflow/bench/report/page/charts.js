"use strict";
// What all charts share: the data, names made safe for labels, colours, and the charts that do not change.
const DATA = JSON.parse(document.getElementById("report-data").textContent);
const INK = "#1d2733", SOFT = "#5a6673", LINE = "#dde3e9", ACCENT = "#0b5f8a", WARM = "#d55e00", GREY = "#9aa5b0";
const FONT = { family: "system-ui, -apple-system, 'Segoe UI', Roboto, Arial, sans-serif", size: 13, color: INK };
const CONFIG = {
  displaylogo: false, displayModeBar: true, modeBarButtons: [["zoomIn2d", "zoomOut2d", "resetScale2d", "toImage"]],
};
const STILL = { displayModeBar: false };

/** A name as the chart library shows it letter by letter: it would read tags. */
function plain(text) {
  return String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
}

function show(value, digits = 3) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  const text = value.toFixed(digits);
  return Number(text) === 0 ? (0).toFixed(digits) : text.replace("-", "−");
}

/** One column of packed numbers: whole steps above the column's least one. */
function column(packed, index) {
  if (!packed.codes) {
    const bytes = Uint8Array.from(atob(packed.data), (letter) => letter.charCodeAt(0));
    packed.codes = packed.bits === 16 ? new Uint16Array(bytes.buffer) : bytes;
  }
  const own = packed.codes.subarray(index * packed.n, (index + 1) * packed.n);
  return Array.from(own, (code) => packed.low[index] + packed.step[index] * code);
}

function axis(title, more = {}) {
  return {
    title: { text: title, font: { size: 13, color: SOFT } }, gridcolor: LINE, zerolinecolor: GREY, linecolor: LINE,
    ticks: "", fixedrange: true, automargin: true, ...more,
  };
}

/** Sizes are given, not left to the chart: its own guess at a height takes the box for the picture. */
function layout(target, height, more) {
  target.style.height = `${height}px`;
  return {
    width: target.clientWidth, height, font: FONT, paper_bgcolor: "#fff", plot_bgcolor: "#fff", margin: { l: 50, r: 16, t: 10, b: 45 }, showlegend: false,
    hoverlabel: { font: { size: 13 }, namelength: -1 }, ...more,
  };
}

const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;

function drawModels() {
  const target = document.getElementById("model-chart");
  if (!target) return Promise.resolve();
  const rows = [...DATA.models].reverse();
  const label = (row) => plain(row.model).replace(" (", "<br>(");
  const colour = (row) => (row.kind === "model" ? ACCENT : GREY);
  const scored = rows.filter((row) => row.mean !== null);
  const points = rows.flatMap((row) => Object.entries(row.by_section).map(([section, r]) => ({ row, section, r })));
  const bars = {
    type: "bar", orientation: "h", x: scored.map((row) => row.mean), y: scored.map(label), width: 0.55,
    marker: {
      color: scored.map((row) => (row.kind === "oracle" ? "#fff" : row.kind === "model" ? "#bcd9e8" : "#e3e8ec")),
      line: { color: scored.map(colour), width: 1 },
    },
    hovertemplate: "%{y}: mean r %{x:.3f}<extra></extra>",
  };
  const dots = {
    type: "scatter", mode: "markers", x: points.map((point) => point.r), y: points.map((point) => label(point.row)),
    marker: { size: 9, color: points.map((point) => colour(point.row)), opacity: 0.85, line: { color: "#fff", width: 1 } },
    customdata: points.map((point) => plain(point.section)),
    hovertemplate: "%{y} on %{customdata}: r %{x:.3f}<extra></extra>",
  };
  const ceiling = DATA.ceiling === null ? {} : {
    shapes: [{
      type: "line", x0: DATA.ceiling, x1: DATA.ceiling, y0: 0, y1: 1, yref: "paper", line: { color: WARM, dash: "dot", width: 1.5 },
    }],
    annotations: [{
      x: DATA.ceiling, y: 1, yref: "paper", yanchor: "bottom", showarrow: false, font: { size: 12, color: WARM },
      text: `ceiling of the counts ${show(DATA.ceiling, 2)}`,
    }],
  };
  return Plotly.react(target, [bars, dots], layout(target, 60 + 44 * rows.length, {
    margin: { l: 10, r: 16, t: 24, b: 45 }, ...ceiling,
    xaxis: axis("mean r over genes", { rangemode: "tozero" }),
    yaxis: axis("", { categoryorder: "array", categoryarray: rows.map(label), showgrid: false }),
  }), STILL);
}

function drawCalibration() {
  const target = document.getElementById("calibration-chart");
  if (!target) return Promise.resolve();
  const colours = [ACCENT, WARM, "#009e73", "#cc79a7", "#56b4e9", "#e69f00", INK];
  const traces = [{ type: "scatter", mode: "lines", x: [0, 1], y: [0, 1], line: { color: GREY, dash: "dash" }, hoverinfo: "skip", showlegend: false }];
  Object.entries(DATA.curves).forEach(([model, points], index) => {
    const color = colours[index % colours.length];
    const single = points.flatMap((point) => Object.entries(point.by_section).map(([section, y]) => [point.level, y, section]));
    traces.push({
      type: "scatter", mode: "markers", x: single.map((s) => s[0]), y: single.map((s) => s[1]), showlegend: false,
      customdata: single.map((s) => plain(s[2])), marker: { color, size: 5, opacity: 0.5 },
      hovertemplate: `${plain(model)} on %{customdata}: %{y:.0%} of %{x:.0%}<extra></extra>`,
    }, {
      type: "scatter", mode: "lines+markers", x: points.map((p) => p.level), y: points.map((p) => p.observed), name: plain(model),
      line: { color }, marker: { size: 9 }, hovertemplate: `${plain(model)}: %{y:.1%} where %{x:.0%} is promised<extra></extra>`,
    });
  });
  const percent = { tickformat: ".0%", range: [0, 1.02] };
  return Plotly.react(target, traces, layout(target, Math.min(440, target.clientWidth), {
    showlegend: true, legend: { orientation: "h", y: 1.02, yanchor: "bottom" },
    xaxis: axis("promised", percent), yaxis: axis("held by the intervals", percent), margin: { l: 60, r: 16, t: 30, b: 50 },
  }), STILL);
}
