"""What the simulated studies say of the verdicts: tables and a figure for `docs/science.md` and `docs/log.md`.

Everything is read from `benchmarks/results/verdict_simulation.json`, which `python -m benchmarks.simulate_verdicts` makes.
"""

import hashlib
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Canvas

from lorastudy.report.document import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    VERMILLION,
    Block,
    Cell,
    Paragraph,
    Table,
    TableColumn,
)
from lorastudy.report.numbers import count, listing, number, percent

RESULTS = Path("benchmarks") / "results" / "verdict_simulation.json"
FIGURE = Path("docs") / "images" / "verdict_simulation.svg"

Row = dict[str, Any]
Results = dict[str, Any]


def simulation(root: Path) -> Results:
    """What came out."""
    found: Results = json.loads((root / RESULTS).read_text(encoding="utf-8"))
    return found


# --- tables -----------------------------------------------------------------------------------------------


def claims_table(root: Path) -> list[Block]:
    """Each aim, and the worst that any design of the simulation showed."""
    results = simulation(root)
    power = [abs(row["share"] - row["planned"]) for row in results["power"]]
    rows = (
        (
            "95 % intervals hold the true difference",
            "93 to 97 %",
            _range(results["coverage"]),
            results["coverage"],
        ),
        (
            "any of five equal arms is called better or worse",
            _at_most(results),
            _most(results["false_better"]),
            results["false_better"],
        ),
        (
            "any arm that is a whole margin behind is called as good within it",
            _at_most(results),
            _most(results["false_as_good"]),
            results["false_as_good"],
        ),
        (
            "any arm that gives up the whole share of the gain is called as good within it",
            _at_most(results),
            _most(_shares(results, is_known=False)),
            _shares(results, is_known=False),
        ),
        (
            "power against the planned one",
            "within 5 points",
            f"at most {number(100 * max(power), 1)} points apart",
            results["power"],
        ),
    )
    columns = ("Aim", "Aimed at", "Simulated: over all designs", "Designs")
    return [
        Paragraph(
            (
                (
                    f"{count(results['num_studies'])} studies of each design, so that a share of 5 % has a standard error "
                    f"of {number(100 * _error(0.05, results), 1)} points; two of them are allowed."
                ),
            )
        ),
        Table(
            columns=tuple(TableColumn(title, numeric=title == "Designs") for title in columns),
            rows=tuple(
                (Cell(aim), Cell(aimed_at), Cell(shown), Cell(str(len(designs)), len(designs)))
                for aim, aimed_at, shown, designs in rows
            ),
        ),
    ]


def intervals_table(root: Path) -> list[Block]:
    """The intervals that were tried, with their coverage by profile: lowest and highest over 4, 6 and 12 seeds."""
    results = simulation(root)
    rows = results["alternatives"]
    profiles = [profile["name"] for profile in results["profiles"]]
    methods = list(dict.fromkeys(row["interval"] for row in rows))
    return [
        Paragraph((f"{count(rows[0]['num_studies'])} studies of each design.",)),
        Table(
            columns=(
                TableColumn("Interval", numeric=False),
                *(TableColumn(profile.capitalize()) for profile in profiles),
            ),
            rows=tuple(
                (
                    Cell(method),
                    *(
                        Cell(_range([r for r in rows if (r["interval"], r["profile"]) == (method, profile)]))
                        for profile in profiles
                    ),
                )
                for method in methods
            ),
        ),
    ]


def shares_table(root: Path) -> list[Block]:
    """False "as good" where the margin is a share of the gain, with the gain's noise in the test and without."""
    results = simulation(root)
    of_gain = sorted({row["of_gain"] for row in results["false_share"]})
    tests = (
        (False, "with the noise of the gain (kept)"),
        (True, "against the measured gain, as if it were known"),
    )
    return [
        Table(
            columns=(
                TableColumn("Tested", numeric=False),
                *(TableColumn(f"{percent(share, decimals=0)} of the gain") for share in of_gain),
            ),
            rows=tuple(
                (
                    Cell(name),
                    *(
                        Cell(
                            _range([r for r in _shares(results, is_known=is_known) if r["of_gain"] == share])
                        )
                        for share in of_gain
                    ),
                )
                for is_known, name in tests
            ),
        )
    ]


def _shares(results: Results, *, is_known: bool) -> list[Row]:
    return [row for row in results["false_share"] if row["gain_taken_as_known"] is is_known]


def profiles_table(root: Path) -> list[Block]:
    """The spreads that were simulated."""
    columns = ("Profile", "seeds", "items", "cells")
    return [
        Table(
            columns=tuple(TableColumn(title, numeric=title != "Profile") for title in columns),
            rows=tuple(
                (
                    Cell(profile["name"].capitalize()),
                    *(Cell(f"{profile[key]:g}", profile[key]) for key in ("seeds", "items", "cells")),
                )
                for profile in simulation(root)["profiles"]
            ),
        )
    ]


def choice_table(root: Path) -> list[Block]:
    """What choosing a learning rate does to verdicts and to the chosen score."""
    columns = ("Rate picked on", "Profile", "False “better”", "Chosen score below the truth, standard errors")
    return [
        Table(
            columns=tuple(TableColumn(title, numeric=index > 1) for index, title in enumerate(columns)),
            rows=tuple(
                (
                    Cell("the reported rows" if row["in_sample"] else "rows of its own"),
                    Cell(row["profile"]),
                    Cell(percent(row["share"])),
                    Cell(number(row["optimism"], 2)),
                )
                for row in sorted(simulation(root)["chosen_rate"], key=lambda row: row["in_sample"])
            ),
        )
    ]


def ties_sentence(root: Path) -> list[Block]:
    """How often the model confidence set keeps the best arm."""
    rows = simulation(root)["tied_set"]
    shares = listing(f"{percent(row['share'], decimals=0)} with {row['num_seeds']} seeds" for row in rows)
    return [
        Paragraph(
            (
                (
                    f"Of {rows[0]['num_arms']} equal arms, a named one stayed in the 95 % set in {shares} "
                    f"({count(rows[0]['num_studies'])} studies each)."
                ),
            )
        )
    ]


def noise_table(root: Path) -> list[Block]:
    """Both errors of the rule before and of the rule now, the worst of all designs of each kind of noise."""
    rows = simulation(root)["noise"]
    kinds = list(dict.fromkeys(_kind(row) for row in rows))
    num_studies = min(row["num_studies"] for row in rows)
    columns = (
        "Noise",
        "False “better”, before",
        "now",
        "False “as good”, before",
        "now",
        "95 % intervals hold, now",
    )
    return [
        Paragraph(
            (
                (
                    f"{count(num_studies)} studies of each design, so that a share of 5 % has a standard error of "
                    f"{number(100 * _error(0.05, {'num_studies': num_studies}), 1)} points; the worst of 5, 6, 8 and 12 "
                    "seeds. Aimed at is 5 %."
                ),
            )
        ),
        Table(
            columns=tuple(TableColumn(title, numeric=index > 0) for index, title in enumerate(columns)),
            rows=tuple(_noise_row(kind, [row for row in rows if _kind(row) == kind]) for kind in kinds),
        ),
    ]


def _kind(row: Row) -> str:
    is_recorded = row["kind"].startswith("recorded")
    return f"{row['kind']}, {row['num_items']} of them" if is_recorded else str(row["kind"])


def _noise_row(kind: str, rows: Sequence[Row]) -> tuple[Cell, ...]:
    before, now = ([row for row in rows if row["rule"] == rule] for rule in ("before", "now"))
    return (
        Cell(kind[0].upper() + kind[1:]),
        *(Cell(percent(max(row["better"] for row in side))) for side in (before, now)),
        *(Cell(percent(max(_false_as_good(row) for row in side))) for side in (before, now)),
        Cell(_range([{"share": row["coverage"]} for row in now])),
    )


def _false_as_good(row: Row) -> float:
    """The worst of one arm alone, one arm against a share of the gain, and any arm of the family."""
    return float(max(*row["as_good"], *row["as_good_of_gain"], row["as_good_in_family"]))


def noise_power_table(root: Path) -> list[Block]:
    """What both rules find at four standard errors under symmetric noise."""
    rows = [row for row in simulation(root)["noise"] if row["kind"] == "symmetric"]
    sizes = sorted({row["num_seeds"] for row in rows})
    lines = [
        (
            f"{word}, {rule}",
            [
                _range(
                    [{"share": row[key]} for row in rows if (row["rule"], row["num_seeds"]) == (rule, size)]
                )
                for size in sizes
            ],
        )
        for word, key in (("better", "power_better"), ("as good", "power_as_good"))
        for rule in ("before", "now")
    ]
    return [
        Table(
            columns=(TableColumn("Found", numeric=False), *(TableColumn(f"{size} seeds") for size in sizes)),
            rows=tuple((Cell(name), *map(Cell, shares)) for name, shares in lines),
        )
    ]


def rules_table(root: Path) -> list[Block]:
    """False “as good” by the rules that were tried, and the power of each under symmetric noise."""
    rows = simulation(root)["other_rules"]
    kinds = list(dict.fromkeys(_kind(row) for row in rows))
    rules = list(dict.fromkeys(row["rule"] for row in rows))
    cell = {(row["rule"], _kind(row)): row for row in rows}
    return [
        Paragraph(
            (
                f"{count(rows[0]['num_studies'])} studies of four arms each, six seeds: false “as good” / found at four standard errors.",
            )
        ),
        Table(
            columns=(
                TableColumn("Rule", numeric=False),
                *(TableColumn(kind[0].upper() + kind[1:]) for kind in kinds),
            ),
            rows=tuple(
                (
                    Cell(rule),
                    *(
                        Cell(f"{percent(one['as_good'])} / {percent(one['power_as_good'], decimals=0)}")
                        for one in (cell[rule, kind] for kind in kinds)
                    ),
                )
                for rule in rules
            ),
        ),
    ]


def _range(rows: Sequence[Row]) -> str:
    shares = [row["share"] for row in rows]
    return f"{number(100 * min(shares), 1)} to {percent(max(shares))}"


def _most(rows: Sequence[Row]) -> str:
    return f"at most {percent(max(row['share'] for row in rows))}"


def _at_most(results: Results) -> str:
    """5 %, and what the simulation may make of it."""
    return f"5 %, simulated at most {percent(0.05 + 2 * _error(0.05, results))}"


def _error(share: float, results: Results) -> float:
    return float((share * (1 - share) / results["num_studies"]) ** 0.5)


# --- the figure -------------------------------------------------------------------------------------------


def mark(root: Path) -> str:
    """A comment that differs when the results do."""
    digest = hashlib.sha256((root / RESULTS).read_bytes()).hexdigest()
    return f"<!-- drawn from {digest} -->"


def drawn_simulation(root: Path) -> str:
    """The figure as SVG, with a mark of the results it was drawn from."""
    results = simulation(root)
    style = {
        "font.family": "DejaVu Sans",
        "font.size": 10,
        "svg.fonttype": "path",
        "svg.hashsalt": "lorastudy",
    }
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(style | {"axes.spines.top": False, "axes.spines.right": False})
        canvas = Canvas(figsize=(7, 11), layout="constrained")
        FigureCanvasAgg(canvas)
        panels = canvas.subplots(4, 1)
        _coverage_panel(panels[0], results)
        _false_panel(
            panels[1], results["false_better"], results, title="False “better” among five equal arms"
        )
        _false_panel(
            panels[2], results["false_as_good"], results, title="False “as good” at a gap of one margin"
        )
        _power_panel(panels[3], results)
        canvas.legend(
            *panels[0].get_legend_handles_labels(),
            loc="outside lower center",
            ncols=4,
            frameon=False,
            fontsize=9,
        )
        text = io.StringIO()
        canvas.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    return f"{text.getvalue().rstrip()}\n{mark(root)}\n"


def _coverage_panel(axes: Axes, results: Results) -> None:
    axes.axhspan(93, 97, color=GREY, alpha=0.15, linewidth=0)
    _dots(axes, results["coverage"], results)
    axes.set_ylim(90, 100)
    axes.set_title("95 % intervals that hold the true difference; band: aimed at", loc="left", fontsize=10)
    axes.set_ylabel("% of studies")


def _false_panel(axes: Axes, rows: Sequence[Row], results: Results, *, title: str) -> None:
    axes.axhline(5, color=GREY, linestyle="--", linewidth=1)
    _dots(axes, rows, results)
    axes.set_ylim(0, 8)
    axes.set_title(f"{title}; line: 5 %", loc="left", fontsize=10)
    axes.set_ylabel("% of studies")


def _power_panel(axes: Axes, results: Results) -> None:
    axes.axhspan(75, 85, color=GREY, alpha=0.15, linewidth=0)
    _dots(axes, results["power"], results)
    axes.set_ylim(70, 90)
    axes.set_title("Verdicts found where 80 % were planned; band: aimed at", loc="left", fontsize=10)
    axes.set_ylabel("% of studies")
    axes.set_xlabel("Seeds")


def _dots(axes: Axes, rows: Sequence[Row], results: Results) -> None:
    """One dot for each design, profiles side by side; a bar of two standard errors to either side."""
    sizes = sorted({row["num_seeds"] for row in rows})
    for index, (profile, colour) in enumerate(
        zip((p["name"] for p in results["profiles"]), (BLUE, VERMILLION, GREEN, ORANGE), strict=True)
    ):
        own = [row for row in rows if row["profile"] == profile]
        by_size = {size: [row for row in own if row["num_seeds"] == size] for size in sizes}
        places = [
            sizes.index(size) + (index - 1.5) * 0.2 + (k - (len(group) - 1) / 2) * 0.05
            for size, group in by_size.items()
            for k in range(len(group))
        ]
        shares = [row["share"] for group in by_size.values() for row in group]
        errors = [200 * _error(share, results) for share in shares]
        axes.errorbar(
            places,
            [100 * share for share in shares],
            yerr=errors,
            fmt="o",
            markersize=4,
            color=colour,
            elinewidth=1,
            label=profile,
        )
    axes.set_xticks(range(len(sizes)), [str(size) for size in sizes])


BLOCKS: dict[str, Callable[[Path], list[Block]]] = {
    "verdict-claims": claims_table,
    "verdict-profiles": profiles_table,
    "verdict-intervals": intervals_table,
    "verdict-shares": shares_table,
    "verdict-choice": choice_table,
    "verdict-ties": ties_sentence,
    "verdict-noise": noise_table,
    "verdict-noise-power": noise_power_table,
    "verdict-rules": rules_table,
}
