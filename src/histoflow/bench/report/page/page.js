"use strict";
// What the reader chose, and everything that follows from it.
const FIELDS = Object.fromEntries(["gene", "section", "model", "opacity"].map((id) => [id, document.getElementById(id)]));
const STATE = { model: DATA.mapped[0] || DATA.chosen, section: (DATA.sections[0] || {}).name, gene: null, opacity: 0.85 };
let TABLE = null;

function options(select, names) {
  select.replaceChildren(...names.map((name) => {
    const option = document.createElement("option");
    option.value = name;
    option.textContent = name;
    return option;
  }));
}

/** Genes that are mapped somewhere, in the order of the model's ranking. */
function mappedGenes() {
  const there = new Set(DATA.sections.flatMap((section) => section.genes));
  const ranked = DATA.genes[DATA.chosen].genes.filter((gene) => there.has(gene));
  return [...ranked, ...[...there].filter((gene) => !ranked.includes(gene))];
}

const GENES = mappedGenes();
STATE.gene = GENES[0];

function caption() {
  const rows = DATA.genes[STATE.model] || { genes: [] }, place = rows.genes.indexOf(STATE.gene);
  const parts = [`${STATE.gene} on ${STATE.section}, ${STATE.model}.`];
  if (place >= 0) {
    const here = (rows.by_section[STATE.section] || [])[place];
    if (here !== undefined && here !== null) parts.push(`r ${show(here)} here.`);
    const told = DATA.columns.filter((column) => rows.metrics[column.key] && rows.metrics[column.key][place] !== null)
      .map((column) => `${column.label} ${show(rows.metrics[column.key][place])}`);
    if (here !== undefined) parts.push(`Gene ${place + 1} of ${rows.genes.length} by r.`);
    if (told.length) parts.push(`${here === undefined ? "Over the slide: " : "Over all sections: "}${told.slice(0, 5).join(", ")}.`);
  }
  document.getElementById("map-caption").textContent = parts.join(" ");
}

function choose(change) {
  const modelBefore = STATE.model;
  Object.assign(STATE, change);
  FIELDS.gene.value = STATE.gene;
  FIELDS.section.value = STATE.section;
  FIELDS.model.value = STATE.model;
  if (TABLE && modelBefore !== STATE.model) TABLE.show(STATE.model);
  if (TABLE) TABLE.mark(STATE.gene);
  caption();
  return Promise.all([drawMaps(STATE), drawGenes(STATE, chooseGene)]);
}

function chooseGene(typed) {
  const note = document.getElementById("gene-note"), wanted = typed.trim().toLowerCase();
  const gene = GENES.find((name) => name.toLowerCase() === wanted) || GENES.find((name) => wanted && name.toLowerCase().startsWith(wanted));
  note.textContent = gene || !wanted ? "" : `There is no map of ${typed.trim()}.`;
  if (gene) choose({ gene });
  else FIELDS.gene.value = STATE.gene;
}

function step(by) {
  const place = GENES.indexOf(STATE.gene) + by;
  choose({ gene: GENES[(place + GENES.length) % GENES.length] });
}

function listen() {
  FIELDS.gene.addEventListener("focus", () => { FIELDS.gene.placeholder = STATE.gene; FIELDS.gene.value = ""; });
  FIELDS.gene.addEventListener("blur", () => { if (!FIELDS.gene.value) FIELDS.gene.value = STATE.gene; });
  FIELDS.gene.addEventListener("change", () => chooseGene(FIELDS.gene.value));
  FIELDS.section.addEventListener("change", () => choose({ section: FIELDS.section.value }));
  FIELDS.model.addEventListener("change", () => choose({ model: FIELDS.model.value }));
  FIELDS.opacity.addEventListener("input", () => {
    STATE.opacity = Number(FIELDS.opacity.value) / 100;
    document.getElementById("opacity-value").textContent = `${FIELDS.opacity.value} %`;
    MAPS.filter((map) => map.data).forEach((map) => Plotly.restyle(map, { "marker.opacity": STATE.opacity }, [0]));
  });
  document.getElementById("controls").addEventListener("submit", (event) => event.preventDefault());
  document.getElementById("gene-before").addEventListener("click", () => step(-1));
  document.getElementById("gene-after").addEventListener("click", () => step(1));
}

/** Sizes follow the window, a while after it has come to rest. */
function resized() {
  let width = innerWidth, waiting = null;
  addEventListener("resize", () => {
    if (innerWidth === width) return;
    width = innerWidth;
    clearTimeout(waiting);
    waiting = setTimeout(draw, 150);
  });
}

/** Charts from the top down; maps take longest, and wait until what is above them can be seen. */
async function draw() {
  await drawModels();
  await new Promise((done) => { setTimeout(done); });
  await (GENES.length ? choose({}) : MAPS.forEach((map) => absent(map, "No prediction was found.")));
  await drawCalibration();
}

function start() {
  options(document.getElementById("gene-names"), GENES);
  options(FIELDS.section, DATA.sections.map((section) => section.name));
  options(FIELDS.model, DATA.mapped);
  TABLE = new GeneTable((gene) => {
    chooseGene(gene);
    document.getElementById("maps").scrollIntoView();
  });
  TABLE.show(STATE.model);
  listen();
  resized();
  return draw();
}

start().then(() => { document.documentElement.dataset.ready = "true"; });
