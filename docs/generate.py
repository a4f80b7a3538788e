"""Fills the generated parts of the documents, so that no number in them is typed.

    python docs/generate.py            write every block and figure (`make docs`)
    python docs/generate.py --check    exit code 1 if one of them is not up to date (`make check`), or if the
                                       measurements are not those of the shipped suite or the example's report

A block stands in a page between `<!-- generated: NAME -->` and `<!-- end -->`; NAME is a key of `BLOCKS`. What
was measured comes from `docs/examples/*.json`, which `docs/measurements.py` makes, and from
`benchmarks/results/*.json`, which `make bench` makes; what was simulated, from
`benchmarks/results/verdict_simulation.json` (`docs/simulation.py`); what was replayed, from
`benchmarks/results/racing.json` (`docs/racing.py`).
"""

import argparse
import configparser
import hashlib
import json
import re
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import laws
import method_claims
import typer
from agreement import disagreements
from data_memory import data_memory_blocks
from example_verdicts import changed_blocks
from families_table import families_summary, families_table
from growth import drawn_growth, growth_block, growth_figures
from kernels import kernel_blocks, kernel_family_blocks
from library import library_reference
from measurements import analysis_of
from memory_error import error_summary, error_table
from memory_tables import memory_blocks
from methods_table import methods_by_family, methods_summary, methods_table
from racing import BLOCKS as RACING_BLOCKS
from rate_search import BLOCKS as RATE_SEARCH_BLOCKS
from seeds_per_pack import seeds_per_pack_blocks
from simulation import BLOCKS as SIMULATION_BLOCKS
from simulation import FIGURE as SIMULATION_FIGURE
from simulation import drawn_simulation, mark
from smoke_table import smoke_blocks
from speed import detail_table, goal_table, machine_table, quality_table, short_table, speed_table
from tokenizer_table import tokenizer_table
from torture_table import torture_conditions, torture_table

from lorastudy.analysis.overview import Analysis
from lorastudy.cli.main import app
from lorastudy.lint.lint import RULES
from lorastudy.planning.packing import MAX_PACK_TOKENS
from lorastudy.report.document import Block as Content
from lorastudy.report.document import Cell, Estimate, Figure, Panel, Paragraph, Strong, Table, TableColumn
from lorastudy.report.figures.data import comparison_figure
from lorastudy.report.figures.static import save_figure
from lorastudy.report.findings.headline import headline
from lorastudy.report.findings.wording import difference_decimals, verdict
from lorastudy.report.markdown import render_markdown
from lorastudy.report.numbers import (
    ABSENT,
    count,
    decimals_for,
    duration,
    interval,
    listing,
    mean_sd,
    number,
    signed,
    size,
)
from lorastudy.stats.summary import EXACT_MATCH, FORGETTING, FORGETTING_BEFORE, LOSS, LOSS_BEFORE, Metric

ROOT = Path(__file__).resolve().parents[1]

_BLOCK = re.compile(r"(<!-- generated: (?P<name>[\w-]+) -->\n)(?P<body>.*?)(<!-- end -->)", re.DOTALL)


def main(arguments: Sequence[str] | None = None, *, root: Path = ROOT) -> int:
    """Write or check every generated part."""
    parser = argparse.ArgumentParser(prog="python docs/generate.py")
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    chosen = parser.parse_args(arguments)
    stale = {path: text for path, text in wanted_files(root).items() if _content(path) != text}
    for path, text in stale.items():
        if chosen.check:
            print(f"{path.relative_to(root)} is not up to date: run `make docs`")
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            print(f"wrote {path.relative_to(root)}")
    apart = disagreements(root)
    for problem in apart:
        print(problem)
    return 1 if chosen.check and (stale or apart) else 0


def pages(root: Path) -> list[Path]:
    """Every page of the documents."""
    return [*sorted(root.glob("*.md")), *sorted((root / "docs").rglob("*.md"))]


#: Follows the name of a study whose arms are called by their labels, as a report does. The other blocks find arms by name.
_AS_A_REPORT = " as a report"
_FIRST_STUDIES = frozenset({"demo", "alpaca_rank_and_rate"})
_WITH_LABELS = _FIRST_STUDIES | set(method_claims.STUDIES)


def wanted_files(root: Path) -> dict[Path, str]:
    """What each page with generated blocks, and each figure, should hold. A figure that is current stays as it is.

    A figure is current when it names the data it was drawn from; its bytes would depend on the drawing library.
    """
    files = sorted((root / "docs" / "examples").glob("*.json"))
    analyses = {path.stem: analysis_of(path) for path in files}
    analyses |= {
        f"{path.stem}{_AS_A_REPORT}": analysis_of(path, with_labels=True)
        for path in files
        if path.stem in _WITH_LABELS
    }
    wanted = {}
    for path in pages(root):
        text = path.read_text(encoding="utf-8")
        if _BLOCK.search(text):
            wanted[path] = filled(text, analyses=analyses, page=path, root=root)
    image = root / "docs" / "images" / "demo.svg"
    figure = demo_figure(analyses["demo"])
    wanted[image] = _content(image) if _mark(asdict(figure)) in _content(image) else drawn(figure)
    for path, data in growth_figures(root).items():
        current = _mark(data) in _content(path)
        wanted[path] = _content(path) if current else f"{drawn_growth(data).rstrip()}\n{_mark(data)}\n"
    simulated = root / SIMULATION_FIGURE
    is_current = mark(root) in _content(simulated)
    wanted[simulated] = _content(simulated) if is_current else drawn_simulation(root)
    return wanted


def filled(text: str, *, analyses: Mapping[str, Analysis], page: Path, root: Path) -> str:
    """The page with every block written anew."""

    def fill(match: re.Match[str]) -> str:
        name = match["name"]
        if name not in BLOCKS:
            raise KeyError(f"{page.relative_to(root)}: no generated block is called {name}")
        return f"{match[1]}{BLOCKS[name](analyses, root).strip()}\n{match[4]}"

    return _BLOCK.sub(fill, text)


# --- blocks -----------------------------------------------------------------------------------------------


def _demo_figure_block(analyses: Mapping[str, Analysis], _: Path) -> str:
    figure = demo_figure(analyses["demo"])
    return f"![{figure.alt}](images/demo.svg)\n\n*{figure.title}.* {figure.caption}"


def _summary_block(name: str) -> "Block":
    """The report's own answer, and what the study took."""

    def block(analyses: Mapping[str, Analysis], _: Path) -> str:
        analysis = analyses[f"{name}{_AS_A_REPORT}"]
        told = headline(analysis)
        parts = (span for title, text in told.parts for span in (" ", Strong(title), f" {text}"))
        return _markdown(Paragraph((Strong(told.answer), *parts, f" {_what_was_run(analysis)}")))

    return block


def _what_was_run(analysis: Analysis) -> str:
    study = analysis.study
    settings = study.arms[0].settings
    seeds = {run.seed for run in study.results} - study.tuning_seeds
    num_tuning = sum(run.seed in study.tuning_seeds for run in study.results)
    tuned = f", and {num_tuning} runs that searched for their learning rates" if num_tuning else ""
    training = next(d for result in study.completed for d in result.data if d.split == "train")
    packs = {result.pack_id: result.pack_profile for result in study.completed if result.pack_profile}
    seconds = sum(p.load_seconds + p.train_seconds + p.eval_seconds for p in packs.values())
    environments = {(e.device_name, e.num_threads) for r in study.completed if (e := r.environment)}
    where = listing(f"{name}, {_counted(threads, 'thread')}" for name, threads in sorted(environments))
    return (
        f"{len(study.reported_arms)} {'ranks' if study.experiment_type == 'rank_ablation' else 'arms'} with {len(seeds)} seeds each{tuned}; {count(training.num_rows)} training rows, "
        f"{study.completed[0].num_steps} steps of {settings['per_device_train_batch_size']} rows; "
        f"{len(study.completed)} of {len(study.results)} experiments completed, in {_counted(len(packs), 'pack')} "
        f"and {duration(seconds)} of worker time, on one machine ({where})."
    )


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _table_block(name: str, columns: Sequence["ColumnOf"]) -> "Block":
    """One row for each arm."""

    def block(analyses: Mapping[str, Analysis], _: Path) -> str:
        analysis = analyses[f"{name}{_AS_A_REPORT}"]
        built = [column(analysis) for column in columns]
        arms = [Cell(summary.arm.name) for summary in analysis.summaries]
        rows = tuple((arm, *cells) for arm, *cells in zip(arms, *(cells for _, cells in built), strict=True))
        titles = (TableColumn("Arm", numeric=False), *(TableColumn(title) for title, _ in built))
        return _markdown(Table(columns=titles, rows=rows))

    return block


ColumnOf = Callable[[Analysis], tuple[str, list[Cell]]]
Block = Callable[[Mapping[str, Analysis], Path], str]


def _metric(metric: Metric, title: str, *, before: Metric | None = None) -> ColumnOf:
    """Mean and standard deviation over seeds; the base model's own value in the title."""

    def column(analysis: Analysis) -> tuple[str, list[Cell]]:
        spreads = [summary.score(metric) for summary in analysis.summaries]
        decimals = decimals_for(spread.sd for spread in spreads if spread)
        start = next((s.score(before) for s in analysis.summaries if before and s.score(before)), None)
        full = title if start is None else f"{title} (before: {number(start.mean, decimals)})"
        return full, [Cell(mean_sd(spread, decimals)) for spread in spreads]

    return column


def _rate_column(analysis: Analysis) -> tuple[str, list[Cell]]:
    return "Learning rate", [Cell(f"{summary.arm.learning_rate:g}") for summary in analysis.summaries]


def _adapter(analysis: Analysis) -> tuple[str, list[Cell]]:
    sizes = [summary.costs.adapter_bytes for summary in analysis.summaries]
    return "Adapter", [Cell(size(spread.median if spread else None)) for spread in sizes]


def _difference(analysis: Analysis) -> tuple[str, list[Cell]]:
    """Paired difference in held-out loss to the reference, with its interval and verdict."""
    assert analysis.reference is not None
    cells = []
    for summary in analysis.summaries:
        comparison = analysis.comparison(summary.arm.name)
        if comparison is None or comparison.mean is None:
            cells.append(Cell(ABSENT))
            continue
        decimals = difference_decimals(comparison)
        bounds = interval(comparison.interval, decimals)
        cells.append(Cell(f"{signed(comparison.mean, decimals)} {bounds}, {verdict(comparison)}"))
    return f"Loss against {analysis.reference.name}, paired, 95 % interval", cells


def _laws_table(suite: str, table: Callable[[Analysis], Table]) -> Block:
    return lambda analyses, _: _markdown(table(analyses[suite]))


def _laws_words(suite: str, words: Callable[[Analysis], str]) -> Block:
    """The words, with the outcomes, which stand between double stars, set off."""

    def block(analyses: Mapping[str, Analysis], _: Path) -> str:
        parts = words(analyses[suite]).split("**")
        return _markdown(Paragraph(tuple(Strong(p) if n % 2 else p for n, p in enumerate(parts) if p)))

    return block


def _laws_runs(analyses: Mapping[str, Analysis], _: Path) -> str:
    """What the page on laws rests on, a line for each suite."""
    lines = []
    for name in laws.SUITES:
        study = analyses[name].study
        diverged = sum(result.failure_kind == "diverged" for result in study.results)
        environments = {(e.device_name, e.num_threads) for r in study.completed if (e := r.environment)}
        where = listing(
            f"{device}, {_counted(threads, 'thread')}" for device, threads in sorted(environments)
        )
        lines.append(
            f"- `configs/experiments/{name}.yaml`: {_counted(len(study.results), 'experiment')}, "
            f"{len(study.completed)} completed, {diverged} diverged ({where})."
        )
    return "\n".join(lines)


def _commands_block(_: Mapping[str, Analysis], __: Path) -> str:
    group: Any = typer.main.get_command(app)
    rows = [(f"`lorastudy {name}`", (command.help or "").strip()) for name, command in group.commands.items()]
    return "\n".join(
        ["| command | what it does |", "|:---|:---|", *(f"| {name} | {text} |" for name, text in rows)]
    )


def _layers_block(_: Mapping[str, Analysis], root: Path) -> str:
    contracts = _contracts(root)
    return f"```text\n{contracts['importlinter:contract:layers']['layers'].strip()}\n```"


def _contracts_block(_: Mapping[str, Analysis], root: Path) -> str:
    contracts = _contracts(root)
    names = [contracts[section]["name"] for section in contracts.sections() if ":contract:" in section]
    return "\n".join(f"- {name}." for name in names)


def _contracts(root: Path) -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(root / ".importlinter", encoding="utf-8")
    return parser


def _linter_block(_: Mapping[str, Analysis], __: Path) -> str:
    return "\n\n".join(
        f"## {rule.code} {rule.title}\n\n{rule.why[0].upper()}{rule.why[1:]}.\n\n*Source:* {rule.source}.\n\n"
        f"*To change:* {rule.change}."
        for rule in RULES
    )


def _pack_bound_block(_: Mapping[str, Analysis], __: Path) -> str:
    return (
        f"Where memory was not predicted, a pack holds at most {count(MAX_PACK_TOKENS)} tokens of one forward pass, counted as if every row had "
        "`max_seq_length` tokens, unless `max_arms_per_pack` says otherwise."
    )


def _benchmark_block(make: Callable[[Path], list[Content]]) -> "Block":
    """A table of the benchmarks' results."""
    return lambda _, root: render_markdown(make(root), output=ROOT / "README.md", plots=ROOT)


def _torture_conditions_block(_: Mapping[str, Analysis], root: Path) -> str:
    return torture_conditions(root)


def _torture_table_block(_: Mapping[str, Analysis], root: Path) -> str:
    return _markdown(torture_table(root))


def _simulation_block(make: Callable[[Path], list[Content]]) -> "Block":
    """What simulated studies and replayed races say of the verdicts."""
    return lambda _, root: render_markdown(make(root), output=ROOT / "README.md", plots=ROOT)


def _changed_verdicts_block(analyses: Mapping[str, Analysis], root: Path) -> str:
    return render_markdown(
        changed_blocks(analyses, root), output=root / "docs" / "log.md", plots=root
    ).strip()


def _data_memory_block(_: Mapping[str, Analysis], root: Path) -> str:
    return render_markdown(
        data_memory_blocks(root), output=root / "docs" / "benchmarks.md", plots=root
    ).strip()


def _memory_error_block(_: Mapping[str, Analysis], root: Path) -> str:
    table = error_table(root)
    return error_summary(root) if table is None else f"{error_summary(root)}\n\n{_markdown(table)}"


_RESULT_COLUMNS: tuple[ColumnOf, ...] = (
    _metric(EXACT_MATCH, "Exact match"),
    _metric(LOSS, "Held-out loss", before=LOSS_BEFORE),
    _metric(FORGETTING, "Base-domain loss", before=FORGETTING_BEFORE),
    _adapter,
    _difference,
)
_METHOD_COLUMNS: tuple[ColumnOf, ...] = (
    _metric(LOSS, "Held-out loss", before=LOSS_BEFORE),
    _rate_column,
    _adapter,
    _difference,
)
BLOCKS: Mapping[str, Block] = {
    "demo-figure": _demo_figure_block,
    "demo-summary": _summary_block("demo"),
    "demo-table": _table_block("demo", _RESULT_COLUMNS),
    "alpaca-summary": _summary_block("alpaca_rank_and_rate"),
    "alpaca-table": _table_block(
        "alpaca_rank_and_rate", (_metric(LOSS, "Held-out loss", before=LOSS_BEFORE), _adapter, _difference)
    ),
    **{f"{name}-study": _summary_block(name) for name in method_claims.STUDIES},
    **{f"{name}-results": _table_block(name, _METHOD_COLUMNS) for name in method_claims.STUDIES},
    **{f"{name}-claims": _laws_table(name, method_claims.claims_table) for name in method_claims.CLAIMED},
    **{f"{name}-rates": _laws_words(name, method_claims.rate_words) for name in method_claims.CLAIMED},
    **{name: _laws_table(suite, table) for name, (suite, table) in laws.TABLES.items()},
    **{name: _laws_words(suite, words) for name, (suite, words) in laws.WORDS.items()},
    "laws-runs": _laws_runs,
    "laws-rule": lambda analyses, _: _markdown(Paragraph((laws.rule_words(analyses),))),
    "commands": _commands_block,
    "layers": _layers_block,
    "library-reference": lambda *_: library_reference(),
    "contracts": _contracts_block,
    "pack-bound": _pack_bound_block,
    "speed-table": _benchmark_block(speed_table),
    "speed-short": _benchmark_block(short_table),
    "speed-goals": _benchmark_block(goal_table),
    "speed-detail": _benchmark_block(detail_table),
    "speed-quality": _benchmark_block(quality_table),
    "speed-machines": _benchmark_block(machine_table),
    "growth": lambda _, root: growth_block(root),
    "kernels": _benchmark_block(kernel_blocks),
    "smoke-versions": _benchmark_block(smoke_blocks),
    "kernel-families": _benchmark_block(kernel_family_blocks),
    "torture-conditions": _torture_conditions_block,
    "torture-table": _torture_table_block,
    **{
        name: _simulation_block(make)
        for name, make in {**SIMULATION_BLOCKS, **RACING_BLOCKS, **RATE_SEARCH_BLOCKS}.items()
    },
    "linter": _linter_block,
    "families-summary": lambda _, root: families_summary(root),
    "families-table": lambda _, root: _markdown(families_table(root)),
    "methods-summary": lambda _, root: methods_summary(root),
    "methods-families": lambda _, root: _markdown(methods_by_family(root)),
    "methods-table": lambda _, root: _markdown(methods_table(root)),
    "tokenizers": lambda _, root: _markdown(tokenizer_table(root)),
    "changed-verdicts": _changed_verdicts_block,
    "data-memory": _data_memory_block,
    "memory-error": _memory_error_block,
    "memory-tables": _benchmark_block(memory_blocks),
    "seeds-per-pack": _benchmark_block(seeds_per_pack_blocks),
}


# --- the figure -------------------------------------------------------------------------------------------


def demo_figure(analysis: Analysis) -> Figure:
    """The demo: what was learnt over what was forgotten, along rank."""
    figure = comparison_figure(analysis)
    assert figure is not None
    match = next(panel for panel in figure.panels if panel.label.startswith(EXACT_MATCH.title))
    learnt = Panel(label="Exact match, new facts (share)", rows=match.rows)
    forgotten = Panel(label="Loss, old facts (nats per token)", rows=_forgotten(analysis))
    num_seeds = len({result.seed for result in analysis.study.results} - analysis.study.tuning_seeds)
    return replace(
        figure,
        title="What rank learns, and what is forgotten for it",
        caption=f"The demo's study. Line: mean; bar: one standard deviation over {num_seeds} seeds; small dots: seeds. "
        "The axes do not begin at zero.",
        alt="Along LoRA rank: share of new facts answered exactly, and loss on facts that the base model knew",
        panels=(learnt, forgotten),
    )


def drawn(figure: Figure) -> str:
    """The figure as SVG, with a mark of the data it was drawn from."""
    with tempfile.TemporaryDirectory() as folder:
        (svg,) = (path for path in save_figure(figure, Path(folder)) if path.suffix == ".svg")
        text = svg.read_text(encoding="utf-8")
    return f"{text.rstrip()}\n{_mark(asdict(figure))}\n"


def _forgotten(analysis: Analysis) -> tuple[Estimate, ...]:
    rows = []
    for summary in analysis.summaries:
        spread = summary.score(FORGETTING)
        assert spread is not None
        assert spread.sd is not None
        rows.append(
            Estimate(
                arm=summary.arm.name,
                rank=int(summary.arm.settings["lora_rank"]),
                mean=spread.mean,
                low=spread.mean - spread.sd,
                high=spread.mean + spread.sd,
                values=spread.values,
            )
        )
    return tuple(rows)


def _mark(shown: Mapping[str, Any]) -> str:
    """A comment that differs when the data does; nine digits, since the last ones depend on the platform."""
    data = re.sub(r"-?\d+\.\d+(?:e-?\d+)?", lambda m: f"{float(m[0]):.9g}", json.dumps(shown))
    return f"<!-- drawn from {hashlib.sha256(data.encode()).hexdigest()} -->"


def _content(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""


def _markdown(block: Paragraph | Table) -> str:
    return render_markdown([block], output=ROOT / "README.md", plots=ROOT)


if __name__ == "__main__":
    sys.exit(main())
