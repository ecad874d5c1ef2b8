"use strict";
// Everything below sets text, never markup: what comes from a backend stays text.
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const make = (tag, text = "", className = "") => {
  const made = document.createElement(tag);
  if (text) made.textContent = text;
  if (className) made.className = className;
  return made;
};
const read = (element) => JSON.parse(element.textContent);
const RED = new Set(["CRASH", "TIMEOUT", "ERROR", "FAIL", "GAP-CLOSED"]);
const messages = read(document.getElementById("messages"));
const dialog = document.getElementById("cell");

// Tables: sort by a heading, search.
function sortable(table) {
  all("thead button", table).forEach((button) => button.addEventListener("click", () => {
    const head = button.closest("th");
    const column = [...head.parentNode.children].indexOf(head);
    const down = head.getAttribute("aria-sort") === "ascending";
    all("th[aria-sort]", table).forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const body = table.tBodies[0];
    const key = (row) => {
      const cell = row.cells[column];
      const number = Number(cell.dataset.v);
      return cell.dataset.v === undefined || Number.isNaN(number) ? cell.textContent : number;
    };
    const rank = (a, b) => {
      if (typeof a === "number" && typeof b === "number") return down ? b - a : a - b;
      if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1; // what is missing comes last
      return (down ? -1 : 1) * a.localeCompare(b, "en", { numeric: true });
    };
    const rows = [...body.rows].map((row) => [key(row), row]);
    rows.sort((a, b) => rank(a[0], b[0]));
    body.append(...rows.map((pair) => pair[1]));
  }));
}

function searchable(label) {
  const input = label.querySelector("input");
  input.addEventListener("input", () => {
    const wanted = input.value.toLowerCase();
    all("tbody tr", label.parentNode).forEach((row) => { row.hidden = !row.textContent.toLowerCase().includes(wanted); });
  });
}

// One of several blocks at a time.
function pick(label) {
  const select = label.querySelector("select");
  const show = () => all("option", select).forEach((option) => {
    document.getElementById(`block-${option.value}`).hidden = option.value !== select.value;
  });
  select.addEventListener("change", show);
  show();
}

// The matrix.
function matrix(section) {
  const data = read(section.querySelector(":scope > script"));
  const form = section.querySelector("form");
  const table = section.querySelector(".matrix");
  const body = table.tBodies[0];
  const rows = [...body.rows];
  const columns = table.tHead.rows[0].cells;
  const said = form.querySelector("output");
  let by = null; // a backend to sort by
  form.addEventListener("submit", (event) => event.preventDefault());

  const chosen = (name) => (form.elements[name] ? form.elements[name].value : "");
  const trials = (row, b) => {
    const [facet, dtype, model] = ["facets", "dtypes", "models"].map(chosen);
    return (data.cells[`${row.dataset.i}.${b}`] || []).filter((trial) => (facet === "" || trial[0] === Number(facet))
      && (dtype === "" || trial[1] === Number(dtype)) && (model === "" || trial[2] === Number(model)));
  };
  // The worst verdict and how often; UNSUPPORTED counts only where there is nothing else.
  const worst = (found) => {
    const judged = found.filter((trial) => data.verdicts[trial[3]] !== "UNSUPPORTED");
    const counted = judged.length ? judged : found;
    if (!counted.length) return null;
    const verdict = Math.min(...counted.map((trial) => trial[3]));
    return { verdict: data.verdicts[verdict], count: counted.filter((t) => t[3] === verdict).length, total: counted.length };
  };
  const label = (cell) => `${data.signs[cell.verdict] || cell.verdict} ${cell.count === cell.total ? cell.count : `${cell.count}/${cell.total}`}`;

  function draw() {
    const [search, show, family, sort] = ["search", "show", "family", "sort"].map(chosen);
    const backends = all("[name=backend]", form).map((box) => box.checked);
    [...columns].slice(1).forEach((head, b) => { head.hidden = !backends[b]; });
    const ranks = new Map();
    let shown = 0;
    for (const row of rows) {
      const about = data.invariants[row.dataset.i];
      const seen = new Set();
      let red = 0;
      [...row.cells].slice(1).forEach((cell, b) => {
        cell.hidden = !backends[b];
        const found = trials(row, b);
        const result = worst(found);
        cell.className = result ? result.verdict : "";
        if (!result) cell.removeAttribute("class");
        if (result) {
          let button = cell.firstElementChild;
          if (!button) {
            button = make("button");
            button.type = "button";
            button.tabIndex = -1;
            cell.replaceChildren(button);
          }
          button.textContent = label(result);
        } else cell.replaceChildren("–");
        if (backends[b]) found.forEach((trial) => {
          const verdict = data.verdicts[trial[3]];
          seen.add(verdict);
          if (RED.has(verdict)) { seen.add("red"); red += 1; }
        });
        if (b === by) ranks.set(row, result ? data.verdicts.indexOf(result.verdict) - result.count / 1e6 : 99);
      });
      if (by === null && sort === "red") ranks.set(row, -red);
      row.hidden = Boolean((search && !`${about.id} ${about.statement}`.toLowerCase().includes(search.toLowerCase()))
        || (show && !seen.has(show)) || (family && about.family !== family));
      shown += row.hidden ? 0 : 1;
    }
    const ordered = rows.slice();
    if (ranks.size) ordered.sort((a, b) => ranks.get(a) - ranks.get(b));
    else if (sort === "name") ordered.sort((a, b) => a.cells[0].textContent.localeCompare(b.cells[0].textContent, "en"));
    const heads = !ranks.size && sort === "";
    let last = null;
    body.replaceChildren(...ordered.flatMap((row) => {
      const name = data.invariants[row.dataset.i].family;
      if (!heads || row.hidden || name === last) return [row];
      last = name;
      const line = make("tr", "", "family");
      const head = make("th", name);
      head.scope = "rowgroup";
      const rest = make("td", "", "rest");
      rest.colSpan = backends.filter(Boolean).length || 1;
      line.append(head, rest);
      return [line, row];
    }));
    said.textContent = `${shown} of ${rows.length} invariants`;
    const first = body.querySelector("tr:not([hidden]) td button");
    if (first) first.tabIndex = 0;
  }

  form.addEventListener("input", (event) => {
    if (event.target.name === "sort") sortBy(null);
    draw();
  });
  function sortBy(b) {
    by = b;
    [...columns].forEach((head, n) => (n - 1 === b && b !== null ? head.setAttribute("aria-sort", "ascending") : head.removeAttribute("aria-sort")));
  }
  all("thead button", table).forEach((button) => button.addEventListener("click", () => {
    const b = Number(button.dataset.b);
    sortBy(by === b ? null : b);
    draw();
  }));
  body.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    const row = button.closest("tr");
    const cell = button.closest("td, th");
    const about = data.invariants[row.dataset.i];
    if (cell.tagName === "TH") return openDialog(about, data.backends.map((name, b) => [name, trials(row, b)]), data);
    const b = cell.cellIndex - 1;
    return openDialog(about, [[data.backends[b], trials(row, b)]], data);
  });
  // Arrow keys: one cell of the matrix is in the tab order, the others are reached from it.
  body.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
    const from = event.target.closest("td");
    if (!step || !from) return;
    const lines = all("tr:not([hidden]):not(.family)", body);
    let [y, x] = [lines.indexOf(from.parentNode), from.cellIndex];
    let next = null;
    do {
      [y, x] = [y + step[0], x + step[1]];
      if (!lines[y] || x < 1 || !lines[y].cells[x]) return;
      next = lines[y].cells[x].hidden ? null : lines[y].cells[x].querySelector("button");
    } while (!next);
    event.preventDefault();
    event.target.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  });
  draw();
}

// What stands behind a cell: trials, counterexamples, causes, commands.
function openDialog(about, parts, data) {
  document.getElementById("cell-title").textContent = parts.length === 1 ? `${about.id} · ${parts[0][0]}` : about.id;
  const inside = dialog.querySelector("div");
  inside.replaceChildren(make("p", about.statement));
  if (about.after.length) inside.append(make("p", `Rests on: ${about.after.join(", ")}`, "reading"));
  for (const [name, found] of parts) {
    if (parts.length > 1) inside.append(make("h4", `${name}${found.length ? "" : ": not judged"}`));
    const groups = new Map();
    found.forEach((trial) => {
      const key = `${trial[3]} ${trial[4]}`;
      groups.set(key, [...(groups.get(key) || []), trial]);
    });
    const opened = new Set();
    [...groups.values()].sort((a, b) => a[0][3] - b[0][3]).forEach((same) => {
      const verdict = data.verdicts[same[0][3]];
      const places = same.map((trial) => [data.facets[trial[0]], data.dtypes[trial[1]], data.models[trial[2]]].filter(Boolean).join(" "));
      const line = [make("span", `${verdict} ${same.length}`, `verdict ${verdict}`), ` in ${places.join(", ")}`];
      const more = same[0][4] >= 0 && (parts.length === 1 || RED.has(verdict)) ? told(messages[same[0][4]]) : [];
      if (more.length && opened.has(verdict)) { // of each verdict the first message is open
        const details = make("details", "", "also");
        const summary = make("summary");
        summary.append(...line);
        details.append(summary, ...more);
        inside.append(details);
        return;
      }
      opened.add(verdict);
      const head = make("p");
      head.append(...line);
      inside.append(head, ...more);
    });
  }
  if (!dialog.open) dialog.showModal();
  dialog.scrollTop = 0;
}

function told(message) {
  const parts = [];
  if (message.left) parts.push(make("p", `The counterexample did not fit into the page: it is in tables/conformance.csv. ${message.cause}`, "reading"));
  if (message.cause && !message.left) {
    const cause = make("p");
    cause.append(make("b", "Cause: "), message.cause);
    parts.push(cause);
  }
  if (message.reason) parts.push(make("p", message.reason));
  (message.links || []).forEach((url) => {
    const link = make("a", url);
    link.href = url;
    link.rel = "noreferrer noopener";
    const line = make("p");
    line.append(link);
    parts.push(line);
  });
  if (message.text) parts.push(make("pre", message.text));
  if (message.reproduce) {
    const line = make("div", "", "command");
    const button = make("button", "Copy");
    button.type = "button";
    button.addEventListener("click", () => copy(message.reproduce, button));
    line.append(make("pre", message.reproduce), button);
    parts.push(make("h4", "Judge this case again"), line);
  }
  if (message.trace) {
    const details = make("details");
    details.append(make("summary", "Traceback"), make("pre", message.trace));
    parts.push(details);
  }
  return parts;
}

async function copy(text, button) {
  let done = true;
  try {
    await navigator.clipboard.writeText(text);
  } catch { // no permission, or an old browser
    const area = make("textarea");
    area.value = text;
    button.parentNode.append(area);
    area.select();
    done = document.execCommand("copy");
    area.remove();
  }
  button.textContent = done ? "Copied" : "Select and copy";
  setTimeout(() => { button.textContent = "Copy"; }, 4000);
}

// The kill matrix is drawn when it is first opened: it has tens of thousands of cells.
function kills(details) {
  details.addEventListener("toggle", () => {
    const place = details.querySelector(".scroll");
    if (!details.open || place.firstChild) return;
    const data = read(details.querySelector("script"));
    const table = make("table", "", "killing");
    const head = table.createTHead().insertRow();
    ["mutant", ...data.invariants].forEach((name) => {
      const cell = make("th", name);
      cell.scope = "col";
      head.append(cell);
    });
    const body = table.createTBody();
    const marks = { x: ["●", "x", "found by the named"], o: ["○", "o", "found by"], ".": ["·", "", ""], "!": ["!", "missed", "named and not found by"] };
    data.rows.forEach(([name, row]) => {
      const line = body.insertRow();
      const first = make("th", name);
      first.scope = "row";
      line.append(first);
      [...row].forEach((mark, n) => {
        const cell = line.insertCell();
        if (mark === " ") return;
        const [sign, className, what] = marks[mark];
        cell.textContent = sign;
        if (className) cell.className = className;
        if (what) cell.title = `${name}: ${what} ${data.invariants[n]}`;
      });
    });
    place.append(table);
  });
}

document.getElementById("theme").addEventListener("click", () => {
  const now = document.documentElement.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
  document.documentElement.dataset.theme = now === "dark" ? "light" : "dark";
});
dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
all(".sheet").forEach(sortable);
all(".find").forEach(searchable);
all(".pick").forEach(pick);
all(".suite").forEach(matrix);
all(".kills").forEach(kills);
