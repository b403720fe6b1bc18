"use strict";
// Maps of one gene on one section, and the scatter of the same spots.
const MAPS = ["map-measured", "map-predicted", "map-width"].map((id) => document.getElementById(id)).filter(Boolean);
const BAR_PX = 62, HEAD_PX = 34;
const TOUCH = matchMedia("(pointer: coarse)").matches;
let linking = false;

/** What there is to draw of a gene; null where it is not on the section's list. */
function drawn(state) {
  const section = DATA.sections.find((one) => one.name === state.section);
  const maps = section && section.maps[state.model];
  const index = section ? section.genes.indexOf(state.gene) : -1;
  if (!maps || index < 0) return null;
  const of = (packed) => (packed ? column(packed, index) : null);
  return {
    section, x: column(section.xy, 0), y: column(section.xy, 1), measured: of(section.measured),
    predicted: of(maps.predicted), width: of(maps.width), kind: maps.width_kind, level: maps.level,
  };
}

/** First and 99th percentile, so that one bright spot does not darken the map. */
function limits(...lists) {
  const sorted = lists.filter(Boolean).flat().sort((a, b) => a - b);
  const at = (q) => sorted[Math.round(q * (sorted.length - 1))];
  const low = at(0.01), high = at(0.99);
  return [low, high > low ? high : low + 1];
}

function frame(found) {
  const margin = found.section.spacing_um;
  const low = (values) => values.reduce((a, b) => Math.min(a, b)) - margin;
  const high = (values) => values.reduce((a, b) => Math.max(a, b)) + margin;
  return { left: low(found.x), right: high(found.x), top: low(found.y), bottom: high(found.y) };
}

/** Diameter of a spot in pixels, so that it keeps its size in µm. */
function spotPixels(target, range, spacing) {
  return Math.max(2, (0.72 * spacing * target.clientWidth) / Math.abs(range[1] - range[0]));
}

function scaleBar(edges) {
  const quarter = (edges.right - edges.left) / 4;
  const decade = 10 ** Math.floor(Math.log10(quarter));
  const length = decade * Math.max(...[1, 2, 5].filter((step) => step * decade <= quarter));
  const x0 = edges.left + 0.03 * (edges.right - edges.left), y = edges.bottom - 0.03 * (edges.bottom - edges.top);
  return {
    shapes: [{ type: "line", x0, x1: x0 + length, y0: y, y1: y, line: { color: INK, width: 3 } }],
    annotations: [{
      x: x0 + length / 2, y, yanchor: "bottom", showarrow: false, text: length >= 1000 ? `${length / 1000} mm` : `${length} µm`,
      font: { size: 12 }, bgcolor: "rgba(255,255,255,.7)", borderpad: 1,
    }],
  };
}

function absent(target, text) {
  Plotly.purge(target);
  target.linked = false;
  target.style.height = "";
  const note = document.createElement("p");
  note.className = "absent";
  note.textContent = text;
  target.replaceChildren(note);
  target.setAttribute("aria-label", text);
}

function drawMap(target, found, values, range, colours, title, state) {
  if (target.querySelector(".absent")) target.replaceChildren();
  const edges = frame(found), { section } = found;
  const x = [edges.left, edges.right], y = [edges.bottom, edges.top];
  const aspect = Math.min(1.6, Math.max(0.45, (edges.bottom - edges.top) / (edges.right - edges.left)));
  const size = spotPixels(target, x, section.spacing_um);
  const spots = {
    type: "scatter", mode: "markers", x: found.x, y: found.y,
    marker: {
      size, color: values, cmin: range[0], cmax: range[1], colorscale: colours, opacity: state.opacity,
      colorbar: {
        orientation: "h", y: -0.01, yanchor: "top", thickness: 11, len: 0.9, outlinewidth: 0, tickfont: { size: 12 }, nticks: 6,
        title: { text: plain(title), side: "bottom", font: { size: 12, color: SOFT } },
      },
    },
    hovertemplate: "%{marker.color:.2f}<br>x %{x:.0f}, y %{y:.0f} µm<extra></extra>",
  };
  const outlines = {
    type: "scatter", mode: "markers", x: section.flagged.map((i) => found.x[i]), y: section.flagged.map((i) => found.y[i]),
    marker: { size: size + 1, color: "rgba(0,0,0,0)", line: { color: WARM, width: 1.5 } }, hoverinfo: "skip",
  };
  const picture = section.picture && {
    source: section.picture.source, xref: "x", yref: "y", layer: "below", sizing: "stretch",
    x: section.picture.extent_um[0], y: section.picture.extent_um[2],
    sizex: section.picture.extent_um[1] - section.picture.extent_um[0],
    sizey: section.picture.extent_um[3] - section.picture.extent_um[2],
  };
  const hidden = { visible: false, automargin: false, constrain: "domain" };
  return Plotly.react(target, section.flagged.length ? [spots, outlines] : [spots], layout(target, Math.round(target.clientWidth * aspect) + HEAD_PX + BAR_PX, {
    margin: { l: 0, r: 0, t: HEAD_PX, b: BAR_PX }, modebar: { bgcolor: "#fff", color: GREY, activecolor: INK },
    images: picture ? [picture] : [], ...scaleBar(edges), dragmode: TOUCH ? false : "zoom", uirevision: section.name,
    xaxis: { ...hidden, range: x }, yaxis: { ...hidden, range: y, scaleanchor: "x" },
  }), CONFIG).then(() => link(target));
}

/** Zoom of one map moves the others, and spots keep their size in µm. */
function link(target) {
  if (target.linked) return;
  target.linked = true;
  target.on("plotly_relayout", (change) => {
    if (linking || !Object.keys(change).some((key) => key.startsWith("xaxis"))) return;
    linking = true;
    const full = target._fullLayout;
    const ranges = { "xaxis.range": [...full.xaxis.range], "yaxis.range": [...full.yaxis.range] };
    const spacing = DATA.sections.find((one) => one.name === full.uirevision).spacing_um;
    const moved = MAPS.filter((map) => map.data).map((map) => {
      const size = spotPixels(map, ranges["xaxis.range"], spacing);
      return Plotly.update(map, { "marker.size": size }, map === target ? {} : ranges);
    });
    Promise.all(moved).finally(() => { linking = false; });
  });
}

function drawScatter(found, state) {
  const target = document.getElementById("scatter");
  if (!target) return Promise.resolve();
  if (!found || !found.measured) return absent(target, "There is nothing measured to compare with.");
  if (target.querySelector(".absent")) target.replaceChildren();
  const all = [...found.measured, ...found.predicted];
  const low = all.reduce((a, b) => Math.min(a, b)), high = all.reduce((a, b) => Math.max(a, b));
  const pad = 0.05 * (high - low) || 0.5, range = [low - pad, high + pad];
  target.setAttribute("aria-label", `Predicted against measured ${state.gene} on ${state.section}, a point per spot.`);
  return Plotly.react(target, [
    { type: "scatter", mode: "lines", x: range, y: range, line: { color: GREY, dash: "dash", width: 1 }, hoverinfo: "skip" },
    {
      type: "scatter", mode: "markers", x: found.measured, y: found.predicted, marker: { color: ACCENT, size: 6, opacity: 0.5 },
      hovertemplate: "measured %{x:.2f}, predicted %{y:.2f}<extra></extra>",
    },
  ], layout(target, Math.min(440, target.clientWidth), {
    margin: { l: 55, r: 16, t: 10, b: 50 },
    xaxis: axis(`measured, ${plain(DATA.scale)}`, { range }), yaxis: axis(`predicted, ${plain(DATA.scale)}`, { range }),
  }), STILL);
}

/** r of every gene, best first, and where the chosen one stands. */
function drawGenes(state, onChoose) {
  const target = document.getElementById("gene-chart");
  if (!target || !DATA.genes[state.model].genes.length) return Promise.resolve();
  const rows = DATA.genes[state.model], r = rows.metrics.pearson, place = rows.genes.indexOf(state.gene);
  const names = rows.genes.map(plain);
  target.model = state.model;
  target.setAttribute("aria-label", `Mean r of ${names.length} genes, best first; ${state.gene} is number ${place + 1}.`);
  return Plotly.react(target, [{
    type: "bar", x: names.map((_, index) => index + 1), y: r, customdata: names, width: 0.8,
    marker: { color: names.map((_, index) => (index === place ? WARM : "#9cc7de")) },
    hovertemplate: "<i>%{customdata}</i>: r %{y:.3f}<extra></extra>",
  }], layout(target, Math.min(440, target.clientWidth), {
    margin: { l: 50, r: 10, t: 24, b: 50 }, xaxis: axis("genes, best first", { showgrid: false, range: [0, names.length + 1] }),
    yaxis: axis("mean r over sections"),
    annotations: place < 0 || r[place] === null ? [] : [{
      x: place + 1, y: Math.max(0, r[place]), text: `<i>${names[place]}</i>`, showarrow: true, arrowcolor: WARM, arrowwidth: 1.2,
      arrowhead: 0, ax: 0, ay: -16, font: { color: "#a84900", size: 13 },
      xanchor: place < names.length * 0.1 ? "left" : place > names.length * 0.9 ? "right" : "center",
    }],
  }), STILL).then(() => {
    if (target.listens) return;
    target.listens = true;
    target.on("plotly_click", (event) => onChoose(DATA.genes[target.model].genes[event.points[0].pointIndex]));
  });
}

/** How the third map is called: an interval's width, or only the spread of the draws. */
function widthTitle(found) {
  if (found.kind === "spread") return "Spread of the draws";
  return found.level ? `Width of the ${Math.round(100 * found.level)} % interval` : "Interval width";
}

function drawMaps(state) {
  const found = drawn(state);
  const [measured, predicted, width] = ["map-measured", "map-predicted", "map-width"].map((id) => document.getElementById(id));
  if (!found) {
    const there = DATA.sections.filter((one) => one.genes.includes(state.gene)).map((one) => one.name);
    const note = there.includes(state.section) ? `${state.model} has no map of ${state.section}.`
      : `${state.gene} is not on the gene list of ${state.section}; it is on that of ${there.join(", ")}.`;
    MAPS.forEach((map) => absent(map, note));
    return Promise.resolve(drawScatter(null, state));
  }
  const shared = limits(found.measured, found.predicted), done = [];
  const put = (target, values, range, colours, title, what) => {
    target.setAttribute("aria-label", `Map of ${what} ${state.gene} on ${state.section}.`);
    done.push(drawMap(target, found, values, range, colours, title, state));
  };
  if (measured && found.measured) put(measured, found.measured, shared, "Viridis", DATA.scale, "measured");
  else if (measured) absent(measured, "Nothing was measured here.");
  put(predicted, found.predicted, shared, "Viridis", DATA.scale, "predicted");
  document.getElementById("width-title").textContent = found.width ? widthTitle(found) : "Interval width";
  if (found.width) put(width, found.width, limits(found.width), "Cividis", found.kind === "spread" ? "s.d. of the draws, no interval" : `in ${DATA.scale}`, "the width of");
  else absent(width, `${state.model} gives no interval and no spread.`);
  return Promise.all([...done, drawScatter(found, state)]);
}
