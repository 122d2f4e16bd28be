
"use strict";
const rows = [...document.querySelectorAll("#rows tbody tr")];
const search = document.querySelector("#search");
const boxes = [...document.querySelectorAll("input[name=kind]")];
const told = document.querySelector("#told");
function filter() {
  const words = search.value.toLowerCase();
  const kinds = new Set(boxes.filter((box) => box.checked).map((box) => box.value));
  for (const row of rows) row.hidden = !kinds.has(row.dataset.kind) || !row.textContent.toLowerCase().includes(words);
  told.textContent = rows.filter((row) => !row.hidden).length + " of " + rows.length + " rows";
}
function sort(head, column) {
  const down = head.getAttribute("aria-sort") === "ascending";
  for (const other of head.parentNode.children) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", down ? "descending" : "ascending");
  const value = (row) => row.children[column].dataset.value ?? row.children[column].textContent;
  const order = (one, other) => {
    const [a, b] = [value(one), value(other)];
    const numbers = a !== "" && b !== "" && !isNaN(a) && !isNaN(b);
    return (numbers ? a - b : a.localeCompare(b)) * (down ? -1 : 1);
  };
  rows.sort(order);
  document.querySelector("#rows tbody").append(...rows);
}
if (search) {
  search.addEventListener("input", filter);
  boxes.forEach((box) => box.addEventListener("change", filter));
  document.querySelectorAll("#rows th").forEach((head, column) =>
    head.querySelector("button").addEventListener("click", () => sort(head, column)));
  filter();
}
