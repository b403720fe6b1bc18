"use strict";
// The table of genes: sorted, filtered, downloaded.
const FEW_SECTIONS = 6;

function tableColumns(model) {
  const rows = DATA.genes[model];
  const sections = Object.keys(rows.by_section);
  const own = DATA.columns.filter((column) => rows.metrics[column.key]).map((column) => ({ ...column, values: rows.metrics[column.key] }));
  const perSection = sections.map((name) => ({ label: `r on ${name}`, title: "", values: rows.by_section[name], single: true }));
  return [...own, ...(sections.length > 1 ? perSection : [])];
}

function compare(a, b) {
  if (a === null || b === null) return (a === null) - (b === null);
  return typeof a === "string" ? a.localeCompare(b) : a - b;
}

class GeneTable {
  constructor(onChoose) {
    this.table = document.getElementById("gene-table");
    this.filter = document.getElementById("filter");
    this.onChoose = onChoose;
    this.sort = { index: 1, down: true };
    this.filter.addEventListener("input", () => this.fill());
    document.getElementById("download").addEventListener("click", () => this.download());
  }

  /** Show the genes of a model. */
  show(model) {
    this.model = model;
    this.columns = tableColumns(model);
    const names = { label: "gene", title: "", values: DATA.genes[model].genes };
    this.shown = [names, ...this.columns.filter((column) => !column.single || this.fewSections())];
    this.sort.index = Math.min(this.sort.index, this.shown.length - 1);
    this.head();
    this.fill();
  }

  fewSections() {
    return this.columns.filter((column) => column.single).length <= FEW_SECTIONS;
  }

  head() {
    const row = document.createElement("tr");
    this.shown.forEach((column, index) => {
      const cell = document.createElement("th"), button = document.createElement("button");
      cell.scope = "col";
      button.type = "button";
      button.textContent = column.label;
      if (column.title) button.title = column.title;
      button.addEventListener("click", () => {
        this.sort = { index, down: this.sort.index === index ? !this.sort.down : index > 0 };
        this.fill();
      });
      cell.append(button);
      row.append(cell);
    });
    this.table.tHead.replaceChildren(row);
  }

  /** Numbers of the genes that pass the filter, in order; those without a value come last. */
  order() {
    const { index, down } = this.sort, values = this.shown[index].values, wanted = this.filter.value.trim().toLowerCase();
    const names = this.shown[0].values;
    const kept = names.map((_, place) => place).filter((place) => names[place].toLowerCase().includes(wanted));
    const missing = (place) => (values[place] === null ? 1 : 0);
    return kept.sort((a, b) => missing(a) - missing(b) || (down ? -1 : 1) * compare(values[a], values[b]) || a - b);
  }

  fill() {
    [...this.table.tHead.rows[0].cells].forEach((cell, index) => {
      const own = index === this.sort.index;
      cell.setAttribute("aria-sort", own ? (this.sort.down ? "descending" : "ascending") : "none");
    });
    const order = this.order();
    this.table.tBodies[0].replaceChildren(...order.map((place) => this.row(place)));
    document.getElementById("row-count").textContent = `${order.length} of ${this.shown[0].values.length} genes, ${this.model}`;
    this.mark(this.current);
  }

  row(place) {
    const row = document.createElement("tr"), [names, ...others] = this.shown;
    const head = document.createElement("th"), button = document.createElement("button");
    head.scope = "row";
    button.type = "button";
    button.textContent = names.values[place];
    button.addEventListener("click", () => this.onChoose(names.values[place]));
    head.append(button);
    row.dataset.gene = names.values[place];
    row.append(head, ...others.map((column) => {
      const cell = document.createElement("td");
      cell.textContent = show(column.values[place]);
      return cell;
    }));
    return row;
  }

  mark(gene) {
    this.current = gene;
    for (const row of this.table.tBodies[0].rows) row.classList.toggle("current", row.dataset.gene === gene);
  }

  /** The rows shown, with every section, as text that a spreadsheet reads and does not run. */
  csv() {
    const columns = [this.shown[0], ...this.columns];
    const head = columns.map((column) => cellText(column.label));
    const lines = this.order().map((place) => columns.map((column) => cellText(column.values[place])));
    return [head, ...lines].map((line) => line.join(",") + "\r\n").join("");
  }

  download() {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([this.csv()], { type: "text/csv;charset=utf-8" }));
    link.download = "genes.csv";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }
}

/** A cell of a CSV: names that a spreadsheet would take for a formula get an apostrophe. */
function cellText(value) {
  if (value === null || value === undefined) return "";
  if (typeof value === "number") return String(value);
  const safe = /^[=+\-@\t\r]/.test(value) ? `'${value}` : value;
  return /[",\r\n]/.test(safe) ? `"${safe.replace(/"/g, '""')}"` : safe;
}
