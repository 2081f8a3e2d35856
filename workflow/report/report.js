// Sort and copy tables, and close enlarged figures with a key. Without scripts, the page shows the same.
"use strict";

function number(cell) {
  if (cell.dataset.value) return Number(cell.dataset.value);
  const text = cell.textContent.trim().replace("\u2212", "-");
  const found = text.match(/^(-?[\d.]+(?:e[+-]?\d+)?)(?: ?%| [a-zA-Z]+)?(?:\s*\u00b1.*)?$/);  // with a unit, and with a std
  return found ? Number(found[1]) : NaN;
}

function compare(one, other) {
  const first = number(one), second = number(other);
  if (Number.isNaN(first) || Number.isNaN(second)) {
    return one.textContent.localeCompare(other.textContent, undefined, { numeric: true });
  }
  return first - second;
}

function sort(table, column, button) {
  const down = button.getAttribute("data-order") === "up";
  for (const other of table.querySelectorAll("thead button")) {
    other.removeAttribute("data-order");
    other.parentElement.removeAttribute("aria-sort");
  }
  button.setAttribute("data-order", down ? "down" : "up");
  button.parentElement.setAttribute("aria-sort", down ? "descending" : "ascending");
  const body = table.tBodies[0];
  const rows = [...body.rows].sort((one, other) => compare(one.cells[column], other.cells[column]));
  body.append(...(down ? rows.reverse() : rows));
}

function makeSortable(table) {
  [...table.tHead.rows[0].cells].forEach((cell, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "sort";
    button.title = "Sort the rows by this column";
    button.append(...cell.childNodes);
    button.addEventListener("click", () => sort(table, column, button));
    cell.append(button);
  });
}

function asText(table) {
  const lines = [...table.rows].filter((row) => row.offsetParent !== null);
  return lines.map((row) => [...row.cells].map((cell) => cell.innerText.trim().replace(/\s+/g, " ")).join("\t")).join("\n");
}

function addCopy(table) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "copy";
  button.textContent = "Copy table";
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(asText(table));
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(table);
      button.textContent = "Selected: copy it with the keyboard";
    }
    setTimeout(() => { button.textContent = "Copy table"; }, 2500);
  });
  (table.closest(".scroll") || table).after(button);
}

document.querySelectorAll("table.sortable").forEach(makeSortable);
document.querySelectorAll("table").forEach(addCopy);
document.addEventListener("keydown", (event) => {
  const open = document.querySelector(".zoom:target .close");
  if (open && event.key === "Escape") open.click();
});
document.querySelectorAll(".enlarge").forEach((link) => link.addEventListener("click", (event) => {
  if (link.closest(".zoom:target")) {
    event.preventDefault();
    link.closest(".zoom").querySelector(".close").click();
  }
}));
