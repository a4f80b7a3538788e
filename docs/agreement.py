"""Whether the examples belong together: measurements with the suite that is shipped, a report with its measurements.

`docs/generate.py` asks this too. Nothing here can be mended by writing a page anew: one has to measure again.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from laws import SUITES
from measurements import analysis_of, results_of
from method_claims import STUDIES

from lorastudy import lab
from lorastudy.analysis.overview import Analysis
from lorastudy.planning.design import steps_counter
from lorastudy.report.document import Block, Paragraph, Table
from lorastudy.report.findings.by_type import questions_of
from lorastudy.report.markdown import render_markdown
from lorastudy.report.sections.results import comparison_blocks, results_blocks
from lorastudy.store.views import ExperimentResult
from lorastudy.suite.experiment import Experiment
from lorastudy.suite.question import configuration_name
from lorastudy.suite.rate_search import foreseen
from lorastudy.suite.settings import Settings
from lorastudy.suite.suite_file import load_suite

ROOT = Path(__file__).resolve().parents[1]


def disagreements(root: Path) -> list[str]:
    """What does not belong together, each with what to do; empty when all does."""
    examples = root / "docs" / "examples"
    return [
        *_other_suite(examples / "demo.json", lab.demo_suite(), how="lorastudy demo"),
        *_other_suite(
            examples / "lab_rank_study.json",
            lab.rank_study(),
            how="lorastudy suite src/lorastudy/lab/rank_study.yaml",
        ),
        *(
            problem
            for name in (*SUITES, "methods", "full_vs_lora")
            for problem in _other_suite(
                examples / f"{name}.json",
                ROOT / "configs/experiments" / f"{name}.yaml",
                how=f"lorastudy suite configs/experiments/{name}.yaml",
            )
        ),
        *_other_numbers(examples / "alpaca_rank_and_rate.md", examples / "alpaca_rank_and_rate.json"),
        *(
            problem
            for name in STUDIES
            for problem in _other_numbers(
                examples / f"{name}.md", examples / f"{name}.json", with_labels=True
            )
        ),
    ]


#: How often training is saved changes no number, nor does `deterministic` on a CPU.
_WITHOUT_EFFECT = {"checkpoint_steps", "checkpoint_minutes", "deterministic"}


def _acting(settings: Mapping[str, Any], *, is_sought: bool) -> dict[str, Any]:
    left_out = _WITHOUT_EFFECT | ({"learning_rate"} if is_sought else set())
    return {key: value for key, value in settings.items() if key not in left_out}


def _other_suite(measured: Path, suite: Path, *, how: str) -> list[str]:
    """In what the measurements were made otherwise than the suite file says now: arms, seeds, settings.

    Where learning rates are looked for, they are left out, and so are the runs that looked for them: which rates are
    tried and found follows from the search of the version that measured.
    """
    loaded, results = load_suite(suite), results_of(measured)
    is_sought = any(arm.seeks_rate for arm in loaded.arms)
    experiments = foreseen(loaded, fingerprint_dataset=str, fingerprint_base=str, num_steps=steps_counter())
    defaults = Settings().model_dump(mode="json")  # of keys that came after the measurement
    asked, made = (
        {
            _arm_and_seed(run, is_sought=is_sought): _acting(settings, is_sought=is_sought)
            for run, settings in runs
            if run.seed in loaded.question.seeds
        }
        for runs in (
            [(e, e.settings.model_dump(mode="json")) for e in experiments],
            [(r, {**defaults, **r.settings}) for r in results],
        )
    )
    if asked == made:
        return []
    apart = ", ".join(sorted(_apart(asked, made))) or "arms or seeds"
    return [
        f"{measured.name} was measured with another {suite.name} ({apart}): run `{how}` and measure again"
    ]


def _arm_and_seed(run: Experiment | ExperimentResult, *, is_sought: bool) -> tuple[str, int]:
    """The arm's name, without its rate where that was looked for."""
    rate = dict(run.settings)["learning_rate"]
    return (configuration_name(run.arm, rate) if is_sought else run.arm), run.seed


def _apart(asked: Mapping[Any, Mapping[str, Any]], made: Mapping[Any, Mapping[str, Any]]) -> set[str]:
    """Keys whose values differ in what both have."""
    return {
        key
        for pair in asked.keys() & made.keys()
        for key in asked[pair].keys() | made[pair].keys()
        if asked[pair].get(key) != made[pair].get(key)
    }


def _other_numbers(report: Path, measured: Path, *, with_labels: bool = False) -> list[str]:
    """Which parts of the report are not what its measurements say: the answer, the results, the comparisons."""
    text, analysis = report.read_text(encoding="utf-8"), analysis_of(measured, with_labels=with_labels)
    missing = [name for name, block in _parts(analysis) if _markdown(block) not in text]
    if not missing:
        return []
    what = f"{report.name} does not carry the numbers of {measured.name} ({', '.join(missing)})"
    return [f"{what}: run `lorastudy report` and take the measurements from one and the same results store"]


def _parts(analysis: Analysis) -> list[tuple[str, Block]]:
    headline = questions_of(analysis.study.experiment_type).headline(analysis)
    blocks = {
        "results": results_blocks(analysis, level=2),
        "comparisons": comparison_blocks(analysis, level=2),
    }
    tables = [(name, block) for name, found in blocks.items() for block in found if isinstance(block, Table)]
    return [("answer", Paragraph((headline,))), *tables]


def _markdown(block: Block) -> str:
    return render_markdown([block], output=Path("README.md"), plots=Path()).strip()
