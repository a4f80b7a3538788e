
// Tables: click a heading to sort, type to filter.
function compareCells(one, other, numeric) {
  if (!numeric) return one.textContent.localeCompare(other.textContent, undefined, { numeric: true });
  const values = [one, other].map((cell) => ("value" in cell.dataset ? Number(cell.dataset.value) : Infinity));
  return values[0] === values[1] ? 0 : values[0] - values[1];
}

function sortBy(table, heading) {
  const column = heading.cellIndex;
  const descending = heading.getAttribute("aria-sort") === "ascending";
  const body = table.tBodies[0];
  const rows = [...body.rows];
  const numeric = rows.some((row) => "value" in row.cells[column].dataset);
  rows.sort((a, b) => compareCells(a.cells[column], b.cells[column], numeric) * (descending ? -1 : 1));
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  heading.setAttribute("aria-sort", descending ? "descending" : "ascending");
  body.append(...rows);
}

function addFilter(table) {
  const input = document.createElement("input");
  input.type = "search";
  input.className = "filter";
  input.placeholder = "Filter rows";
  input.setAttribute("aria-label", "Filter rows");
  input.addEventListener("input", () => {
    const wanted = input.value.toLowerCase();
    for (const row of table.tBodies[0].rows) {
      row.hidden = ![...row.cells].some((cell) => cell.textContent.toLowerCase().includes(wanted));
    }
  });
  table.parentElement.before(input);
}

document.querySelectorAll(".table table").forEach((table) => {
  if (table.tBodies[0].rows.length > 3) addFilter(table);
  for (const heading of table.tHead.rows[0].cells) {
    heading.tabIndex = 0;
    heading.addEventListener("click", () => sortBy(table, heading));
    heading.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      sortBy(table, heading);
    });
  }
});
