"""The HTML report as a browser runs it: charts drawn, no error, tables sorted and filtered by their controls."""

import base64
import hashlib
import json
import re
import shutil
import subprocess
from html import unescape

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)
pytestmark = pytest.mark.skipif(
    BROWSER is None, reason=f"needs a browser: none of {', '.join(BROWSERS)} is installed"
)

#: Written into a copy of the page, before its own scripts: keeps every error that they leave uncaught or log.
LISTEN = """<script>
window.seenErrors = [];
addEventListener("error", (event) => seenErrors.push(String(event.message)));
addEventListener("unhandledrejection", (event) => seenErrors.push(String(event.reason)));
addEventListener("securitypolicyviolation", (event) => seenErrors.push("refused: " + event.blockedURI));
console.error = console.warn = (...parts) => seenErrors.push(parts.join(" "));
</script>"""

#: Written after the page's own scripts: once the charts are drawn, does what a reader does and notes what is shown.
USE = """<script>
const tables = [...document.querySelectorAll("table")];
const results = tables[0], accuracies = tables[2];
const arms = (table = results) =>
  [...table.tBodies[0].rows].filter((row) => !row.hidden).map((row) => row.cells[0].textContent);
const heading = (text, table = results) =>
  [...table.tHead.rows[0].cells].find((cell) => cell.textContent.startsWith(text));
function filter(text) {
  const box = document.querySelector("input.filter");
  box.value = text;
  box.dispatchEvent(new Event("input"));
}
function use() {
  const seen = { asWritten: arms() };
  heading("Held-out loss").click();
  seen.lowestLossFirst = arms();
  heading("Held-out loss").click();
  seen.highestLossFirst = arms();
  heading("Trainable").dispatchEvent(new KeyboardEvent("keydown", { key: "Enter" }));
  seen.byKeyboard = arms();
  heading("Exact match", accuracies).click();
  seen.mostNegativeFirst = arms(accuracies);
  heading("Exact match", accuracies).click();
  seen.mostNegativeLast = arms(accuracies);
  filter("R=16");
  seen.filtered = arms();
  filter("no such arm");
  seen.none = arms();
  filter("");
  seen.again = arms();
  seen.charts = [...document.querySelectorAll(".chart")].map((box) => ({
    marks: box.querySelectorAll("svg.marks [role=graphics-symbol], svg.marks path").length,
    width: box.querySelector("svg.marks")?.clientWidth ?? 0,
    text: box.textContent,
  }));
  seen.pageIsWider = document.documentElement.scrollWidth > document.documentElement.clientWidth;
  const inFirst = (marks) =>
    [...document.querySelector(".chart").querySelectorAll(marks)].map((mark) => mark.getBoundingClientRect());
  const bars = inFirst(".mark-rule.role-mark line").filter((bar) => bar.width > bar.height);
  seen.verdictAboveBar = inFirst(".mark-text.role-mark text").map((text) =>
    Math.min(...bars.map((bar) => bar.top - text.bottom).filter((gap) => gap > -20)));
  seen.errors = seenErrors;
  seen.innerWidth = innerWidth;
  seen.wideTables = [...document.querySelectorAll(".table")].map((box) => box.scrollWidth > box.clientWidth);
  seen.verdicts = document.querySelectorAll(".chart")[0].textContent;
  const bar = document.querySelector(".chart svg.marks .mark-symbol path");
  const at = bar.getBoundingClientRect();
  const point = { bubbles: true, clientX: at.x + at.width / 2, clientY: at.y + at.height / 2 };
  for (const kind of ["pointerover", "pointermove", "mouseover", "mousemove"]) {
    bar.dispatchEvent(new (kind.startsWith("p") ? PointerEvent : MouseEvent)(kind, point));
  }
  seen.hover = document.getElementById("vg-tooltip-element")?.textContent ?? "";
  parent.postMessage(JSON.stringify(seen), "*");
}
const drawn = () => [...document.querySelectorAll(".chart")].every((box) => box.childElementCount || box.textContent);
const timer = setInterval(() => { if (drawn()) { clearInterval(timer); use(); } }, 50);
</script>"""


#: Written after the page's own scripts instead: looks at the page in the system's colours, then in the other ones.
SURVEY = """<script>
const shade = (element, name) => getComputedStyle(element)[name];
const colours = () => ({
  paper: shade(document.querySelector("figure"), "backgroundColor"),
  ink: shade(document.querySelector(".chart svg .mark-text text"), "fill"),
  text: shade(document.body, "color"),
  page: shade(document.body, "backgroundColor"),
});
function survey() {
  const seen = { width: innerWidth, system: colours() };
  document.querySelector('[data-do="theme"]').click();
  seen.other = colours();
  const lefts = [...document.querySelectorAll(".figures > figure:not(.wide)")].map((figure) => figure.getBoundingClientRect().left);
  seen.abreast = new Set(lefts.map(Math.round)).size;
  seen.beyond = [...document.querySelectorAll("main *, nav *")]
    .filter((each) => !each.closest(".table, .versus, pre, nav details:not([open]), main details:not([open])") && each.getBoundingClientRect().right > innerWidth + 1)
    .map((each) => each.outerHTML.slice(0, 80));
  seen.pageIsWider = document.documentElement.scrollWidth > document.documentElement.clientWidth;
  seen.contentsAreOpen = document.querySelector("nav details").open;
  scrollTo(0, 3000);
  const nav = document.querySelector("nav").getBoundingClientRect();
  seen.contentsStay = nav.top === 0 && nav.bottom <= innerHeight;
  seen.errors = seenErrors;
  parent.postMessage(JSON.stringify(seen), "*");
}
const drawn = () => [...document.querySelectorAll(".chart")].every((box) => box.childElementCount || box.textContent);
const timer = setInterval(() => { if (drawn()) { clearInterval(timer); survey(); } }, 50);
</script>"""
#: Written after the page's own scripts instead: chooses among arms, compares two of them, copies, and points at a dot.
CHOOSE = """<script>
const wait = (milliseconds) => new Promise((done) => setTimeout(done, milliseconds));
const shownRows = () => [...document.querySelector(".table tbody").rows].filter((row) => row.offsetHeight).map((row) => row.cells[0].textContent);
const namesIn = (chart) => [...chart.querySelectorAll(".mark-text.role-mark text")].map((text) => text.textContent);
const button = (text) => [...document.querySelectorAll("button")].find((each) => each.textContent === text);
async function choose() {
  const seen = {}, [pairs, frontier] = document.querySelectorAll(".chart");
  button("r=1").click();
  button("r=16").click();
  await wait(500);
  seen.rowsLeft = shownRows();
  seen.namesLeft = namesIn(frontier);
  seen.shadesLeft = [...pairs.querySelectorAll(".mark-symbol path")].map((mark) => mark.getAttribute("stroke"));
  button("r=1").click();
  button("r=16").click();
  await wait(500);
  seen.rowsAgain = shownRows();
  const versus = document.querySelector(".versus"), [one, other] = versus.querySelectorAll("select");
  const sideBySide = () => [...versus.querySelectorAll("tr")].filter((row) => row.offsetHeight)
    .map((row) => [...row.cells].filter((cell) => cell.offsetHeight).map((cell) => cell.textContent));
  const difference = () => [...versus.querySelectorAll(".difference")].filter((text) => text.offsetHeight).map((text) => text.textContent);
  seen.firstTwo = [one.value, other.value, ...difference()];
  one.value = "r=2";
  other.value = "r=8";
  one.dispatchEvent(new Event("change"));
  seen.sideBySide = sideBySide();
  seen.difference = difference();
  versus.querySelector("input").click();
  seen.numRowsWithWhatIsEqual = sideBySide().length;
  const copied = [];
  document.execCommand = () => copied.push(document.activeElement.value);
  Object.defineProperty(navigator, "clipboard", { value: { writeText: (text) => { copied.push(text); return Promise.resolve(); } } });
  button("Copy the configuration of r=32").click();
  await wait(50);
  seen.copied = copied;
  seen.says = [...document.querySelectorAll(".copies button")].map((each) => each.textContent);
  const dot = [...frontier.querySelectorAll(".mark-symbol path")].find((mark) => mark.getAttribute("stroke") === "#D55E00");
  const at = dot.getBoundingClientRect();
  const point = { bubbles: true, clientX: at.x + at.width / 2, clientY: at.y + at.height / 2 };
  for (const kind of ["pointerover", "pointermove"]) dot.dispatchEvent(new PointerEvent(kind, point));
  await wait(50);
  seen.hover = document.getElementById("vg-tooltip-element")?.textContent ?? "";
  seen.errors = seenErrors;
  parent.postMessage(JSON.stringify(seen), "*");
}
const drawn = () => [...document.querySelectorAll(".chart")].every((box) => box.childElementCount || box.textContent);
const timer = setInterval(() => { if (drawn()) { clearInterval(timer); choose(); } }, 50);
</script>"""
#: A phone, a tablet and a desk.
WIDTHS = (390, 820, 1440)


#: Holds the page at a phone's width: a browser without a head makes no window narrower than 500 pixels.
HOLD = """<!doctype html><body>{frames}<script>
addEventListener("message", (event) => {
  const note = document.createElement("pre");
  note.className = "seen";
  note.textContent = event.data;
  document.body.append(note);
});
</script></body>"""
FRAME = '<iframe src="page.html" width="{width}" height="844"></iframe>'


@pytest.fixture(scope="module")
def seen(written, tmp_path_factory):
    """What the page showed while it was used, in a window as narrow as a phone's."""
    return used(written, tmp_path_factory.mktemp("browser"), width=390)


def used(written, folder, *, width):
    """What the page showed while it was used in a window of that width."""
    (seen,) = observed(written, folder, widths=(width,), script=USE)
    return seen


def observed(written, folder, *, widths, script, options=()):
    """What a script of ours noted in the page, in windows of these widths."""
    page = (written[0] / "RESULTS.html").read_text(encoding="utf-8")
    # The page runs no scripts but its own; these two are ours.
    page = page.replace("script-src ", f"script-src {' '.join(map(allowed, (LISTEN, script)))} ", 1)
    head, rest = page.split("<style>", maxsplit=1)
    body, end = rest.rsplit("</body>", maxsplit=1)
    copy = folder / "page.html"
    copy.write_text(f"{head}{LISTEN}<style>{body}{script}</body>{end}", encoding="utf-8")
    holder = folder / "holder.html"
    frames = "".join(FRAME.replace("{width}", str(width)) for width in widths)
    holder.write_text(HOLD.replace("{frames}", frames), encoding="utf-8")
    dom = dump_dom(holder, profile=folder / "profile", options=options)
    noted = re.findall(r'<pre class="seen">(.*?)</pre>', dom, flags=re.DOTALL)
    assert len(noted) == len(widths), "the charts were never drawn"
    return [json.loads(unescape(each)) for each in noted]


def allowed(element):
    """What the page's policy says of a script that may run: the hash of what stands between its tags."""
    script = element.removeprefix("<script>").removesuffix("</script>")
    return f"&#x27;sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}&#x27;"


def dump_dom(page, *, profile, options=()):
    """The document after its scripts ran; the time that the page sees runs on at once while nothing is pending."""
    flags = [
        "--headless",
        "--no-sandbox",  # a sandbox needs rights that root in a container lacks; the page is our own
        "--disable-gpu",
        "--disable-dev-shm-usage",
        f"--user-data-dir={profile}",
        "--window-size=500,900",
        "--virtual-time-budget=20000",
        "--dump-dom",
    ]
    done = subprocess.run(
        [BROWSER, *flags, *options, page.as_uri()],
        capture_output=True,
        encoding="utf-8",
        check=True,
        timeout=120,
    )
    return done.stdout


def test_every_chart_is_drawn(seen):
    assert len(seen["charts"]) == 12
    for chart in seen["charts"]:
        assert chart["marks"] > 5
        assert 0 < chart["width"] <= 390
        assert "could not be drawn" not in chart["text"]


def test_no_script_failed_and_nothing_was_refused(seen):
    assert seen["errors"] == []


def test_a_narrow_window_scrolls_tables_and_not_the_page(seen):
    assert seen["innerWidth"] < 400
    assert not seen["pageIsWider"]
    assert any(seen["wideTables"])


def test_a_laptop_s_window_shows_every_table_whole(written, tmp_path):
    seen = used(written, tmp_path, width=1200)
    assert seen["innerWidth"] == 1200
    assert seen["wideTables"]
    assert not any(seen["wideTables"])


def test_each_verdict_stands_clear_of_its_bar(seen):
    assert len(seen["verdictAboveBar"]) == 5
    assert all(8 < gap < 30 for gap in seen["verdictAboveBar"])


def test_the_verdict_stands_beside_each_interval_and_the_numbers_answer_to_hover(seen):
    assert seen["verdicts"].count("reference ahead, untuned") == 5
    for said in ("Arm", "r=1", "Difference", "+1.254", "Pairs", "6"):
        assert said in seen["hover"]


def test_headings_sort_by_value_with_mouse_and_keyboard(seen):
    ranks = ["r=1", "r=2", "r=4", "r=8", "r=16"]
    by_rank = [*(f"{rank} (untuned)" for rank in ranks), "r=32 (reference, untuned)"]
    assert seen["asWritten"] == by_rank
    assert seen["lowestLossFirst"] == by_rank[::-1]
    assert seen["highestLossFirst"] == by_rank
    assert seen["byKeyboard"] == by_rank
    # Negative differences come the other way round by their text.
    assert seen["mostNegativeFirst"] == ranks
    assert seen["mostNegativeLast"] == ranks[::-1]


def test_the_filter_hides_what_does_not_match_in_any_case(seen):
    assert seen["filtered"] == ["r=16 (untuned)"]
    assert seen["none"] == []
    assert len(seen["again"]) == 6


@pytest.fixture(scope="module")
def surveyed(written, tmp_path_factory):
    """What the page looked like at each width, where the system has dark colours."""
    folder = tmp_path_factory.mktemp("survey")
    dark = ("--blink-settings=preferredColorScheme=0",)
    found = observed(written, folder, widths=WIDTHS, script=SURVEY, options=dark)
    return {seen["width"]: seen for seen in found}


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_stands_beyond_the_edge_of_any_window_and_no_script_fails(surveyed, width):
    seen = surveyed[width]
    assert seen["errors"] == []
    assert seen["beyond"] == []
    assert not seen["pageIsWider"]


@pytest.mark.parametrize(("width", "abreast", "is_open"), [(390, 1, False), (820, 2, False), (1440, 2, True)])
def test_charts_stand_two_abreast_but_on_a_phone_and_the_contents_stay(surveyed, width, abreast, is_open):
    seen = surveyed[width]
    assert seen["abreast"] == abreast
    assert seen["contentsAreOpen"] == is_open
    assert seen["contentsStay"]


@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_has_the_colours_of_the_system_and_a_button_for_the_others(surveyed, width):
    dark, light = surveyed[width]["system"], surveyed[width]["other"]
    assert brightness(dark["page"]) < 0.1
    assert brightness(light["page"]) > 0.9
    for seen in (dark, light):
        for on, written_on in (("ink", "paper"), ("text", "page")):
            assert contrast(seen[on], seen[written_on]) > 7  # WCAG 2.2, level AAA


@pytest.fixture(scope="module")
def chosen(written, tmp_path_factory):
    """What the page showed while a reader chose among its arms."""
    (seen,) = observed(written, tmp_path_factory.mktemp("choose"), widths=(1440,), script=CHOOSE)
    assert seen["errors"] == []
    return seen


def test_a_click_on_an_arm_hides_it_in_tables_and_charts_and_colours_stay(chosen):
    assert [name.split(" (")[0] for name in chosen["rowsLeft"]] == ["r=2", "r=4", "r=8", "r=32"]
    assert sorted(name.split(" (")[0] for name in chosen["namesLeft"]) == ["r=2", "r=32", "r=4", "r=8"]
    # The second to fourth colours of the palette: those that the arms had.
    assert chosen["shadesLeft"] == ["#D55E00", "#009E73", "#CC79A7"]
    assert len(chosen["rowsAgain"]) == 6


def test_any_two_arms_stand_side_by_side_with_their_difference(chosen):
    assert chosen["firstTwo"][:2] == ["r=32", "r=1"]
    head, *rows = chosen["sideBySide"]
    assert head == ["", "r=2", "r=8"]
    assert ["lora_rank", "2", "8"] in rows
    assert all(len({*row[1:]}) == 2 for row in rows)
    assert chosen["numRowsWithWhatIsEqual"] > len(chosen["sideBySide"])
    (difference,) = chosen["difference"]
    assert difference.startswith("r=2 minus r=8: +")


def test_a_button_copies_the_configuration_of_the_named_arm(chosen):
    (text,) = chosen["copied"]
    assert "lora_rank: 32" in text
    assert chosen["says"] == ["Copied", "Copy the suite"] or chosen["says"] == ["Copy the suite", "Copied"]


def test_a_dot_shows_its_arm_s_whole_configuration(chosen):
    for said in (
        "r=2",
        "One step (ms)",
        "lora_rank",
        "lora_alpha",
        "target_modules",
        "learning_rate",
        "0.0002",
        "max_steps",
    ):
        assert said in chosen["hover"]


def brightness(colour):
    """The relative luminance of `rgb(r, g, b)`, by WCAG 2.2."""
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one, other):
    """The contrast ratio of two colours, by WCAG 2.2."""
    low, high = sorted(map(brightness, (one, other)))
    return (high + 0.05) / (low + 0.05)
