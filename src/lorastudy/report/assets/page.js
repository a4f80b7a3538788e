
// Contents: open beside the page, closed above it, where they would cover a phone's screen.
const contents = document.querySelector("nav details");
const beside = matchMedia("(min-width: 84rem)");
if (contents) {
  const place = () => { contents.open = beside.matches; };
  place();
  beside.addEventListener("change", place);
  contents.addEventListener("click", (event) => {
    if (event.target.closest("a") && !beside.matches) contents.open = false;
  });
}

// Colours: those of the system, until a reader chooses.
const isDark = () =>
  (document.documentElement.dataset.theme ??
    (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
document.querySelector('[data-do="theme"]').addEventListener("click", () => {
  document.documentElement.dataset.theme = isDark() ? "light" : "dark";
});
document.querySelector('[data-do="print"]').addEventListener("click", () => print());

// Code: a button copies it; code with a name has one in the head of its study, too.
async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = document.createElement("textarea");
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy"); // the only way where the page is not served safely
    area.remove();
  }
}

function copyButton(label, code) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "copy";
  button.textContent = label;
  button.addEventListener("click", async () => {
    await copy(code.textContent);
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = label; }, 1500);
  });
  return button;
}

for (const box of document.querySelectorAll(".code")) {
  const code = box.querySelector("code");
  box.append(copyButton("Copy", code));
  const tiles = box.closest(".study")?.querySelector(".tiles");
  if (!box.dataset.copied || !tiles) continue;
  if (!tiles.nextElementSibling?.classList.contains("copies")) {
    const copies = document.createElement("div");
    copies.className = "copies";
    tiles.after(copies);
  }
  tiles.nextElementSibling.append(copyButton(`Copy ${box.dataset.copied}`, code));
}

// Paper has no clicks: what is folded is printed open.
let folded = [];
addEventListener("beforeprint", () => {
  folded = [...document.querySelectorAll("main details:not([open])")];
  for (const each of folded) each.open = true;
});
addEventListener("afterprint", () => {
  for (const each of folded) each.open = false;
});
