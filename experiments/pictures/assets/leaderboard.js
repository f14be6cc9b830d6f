// Choose rows by their first columns, and sort by any column.
const body = document.querySelector("#board tbody");
const rows = [...body.rows];
const selects = [...document.querySelectorAll("select[data-column]")];
const value = (row, column) => row.cells[column].dataset.value;

function choose() {
  let shown = 0;
  for (const row of rows) {
    row.hidden = selects.some((s) => s.value && s.value !== value(row, Number(s.dataset.column)));
    shown += !row.hidden;
  }
  document.getElementById("count").textContent = `${shown} of ${rows.length} rows`;
}

function sort(head) {
  const column = head.cellIndex;
  const down = head.getAttribute("aria-sort") !== "descending";
  document.querySelectorAll("#board th").forEach((other) => other.setAttribute("aria-sort", "none"));
  head.setAttribute("aria-sort", down ? "descending" : "ascending");
  const numbers = rows.every((row) => value(row, column) === "" || !Number.isNaN(Number(value(row, column))));
  const order = (a, b) => (numbers ? Number(a) - Number(b) : a.localeCompare(b));
  rows.sort((a, b) => order(value(a, column), value(b, column)) * (down ? -1 : 1));
  body.append(...rows);
}

selects.forEach((select) => select.addEventListener("change", choose));
document.querySelectorAll("#board th").forEach((head) => head.addEventListener("click", () => sort(head)));
choose();
