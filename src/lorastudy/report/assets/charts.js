"use strict";

// Charts: the n-th box takes the n-th specification. A click on an arm leaves it out of its study's charts and tables.
const specs = JSON.parse(document.getElementById("charts").textContent);
const actions = { export: true, source: false, compiled: false, editor: false };
const chartBoxes = [...document.querySelectorAll(".chart")];

function draw(box, spec) {
  box.drawn?.finalize();
  return window.vegaEmbed(box, spec, { actions, renderer: "svg", tooltip: { theme: "custom" } }).then(
    (chart) => { box.drawn = chart; },
    (error) => { box.textContent = "This chart could not be drawn: " + error.message; },
  );
}

/** The specification without the rows of hidden arms. Colours stay, since each has the whole list of arms. */
function withoutArms(value, hidden) {
  if (Array.isArray(value)) {
    return value.filter((item) => !hidden.has(item?.arm)).map((item) => withoutArms(item, hidden));
  }
  if (value === null || typeof value !== "object") return value;
  return Object.fromEntries(Object.entries(value).map(([key, part]) => [key, withoutArms(part, hidden)]));
}

/** Whether any row of the specification is about an arm. */
function hasArms(value) {
  if (value === null || typeof value !== "object") return false;
  return typeof value.arm === "string" || Object.values(value).some(hasArms);
}

function drawWithout(box, spec, hidden) {
  const left = hidden.size ? withoutArms(spec, hidden) : spec;
  if (hasArms(left)) return void draw(box, left);
  box.drawn?.finalize();
  box.drawn = null;
  box.textContent = "Every arm of this chart is hidden.";
}

function showArms(study) {
  const buttons = [...study.querySelectorAll(".arms button")];
  const hidden = new Set(
    buttons.filter((button) => button.getAttribute("aria-pressed") === "false").map((button) => button.dataset.arm),
  );
  for (const row of study.querySelectorAll("tr[data-arm]")) row.classList.toggle("off", hidden.has(row.dataset.arm));
  chartBoxes.forEach((box, index) => {
    if (study.contains(box)) drawWithout(box, specs[index], hidden);
  });
}

chartBoxes.forEach((box, index) => draw(box, specs[index]));

for (const study of document.querySelectorAll(".study")) {
  const buttons = [...study.querySelectorAll(".arms button")];
  for (const button of buttons) {
    button.title = "Show or hide this arm";
    button.addEventListener("click", () => {
      button.setAttribute("aria-pressed", String(button.getAttribute("aria-pressed") === "false"));
      if (buttons.every((other) => other.getAttribute("aria-pressed") === "false")) {
        for (const other of buttons) other.setAttribute("aria-pressed", "true"); // to hide all would leave nothing to click for
      }
      showArms(study);
    });
  }
}
