
// Two arms side by side: all stand in the table, and those that are not chosen are hidden.
function compareArms(box) {
  const [one, other] = [...box.querySelectorAll("select")].map((select) => select.value);
  const onlyDifferent = box.querySelector("input").checked;
  for (const cell of box.querySelectorAll("[data-arm]")) {
    cell.classList.toggle("off", cell.dataset.arm !== one && cell.dataset.arm !== other);
  }
  for (const row of box.querySelector("tbody").rows) {
    const shown = [...row.querySelectorAll("td:not(.off)")].map((cell) => cell.textContent);
    const differs = new Set(shown).size > 1;
    row.classList.toggle("differs", differs);
    row.classList.toggle("off", onlyDifferent && !differs);
  }
  for (const text of box.querySelectorAll(".difference")) {
    text.classList.toggle("off", text.dataset.one !== one || text.dataset.other !== other);
  }
}

for (const box of document.querySelectorAll(".versus")) {
  for (const control of box.querySelectorAll("select, input")) control.addEventListener("change", () => compareArms(box));
  compareArms(box);
}
