"""Whether a report with hostile text is built exactly like one with harmless text, in Markdown, in HTML, in a browser."""

import base64
import contextlib
import hashlib
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

from markdown_it import MarkdownIt

from lorastudy.analysis.overview import analyse
from lorastudy.report.document import presentable
from lorastudy.report.figures.data import study_figures
from lorastudy.report.html import render_html
from lorastudy.report.markdown import render_markdown
from lorastudy.report.read import Studied, without_traces
from lorastudy.report.side_by_side import RowOfArms
from lorastudy.report.write import Part, compose
from lorastudy.stats.held_out_curves import held_out_curves
from lorastudy.stats.study import Study, split_studies
from lorastudy.store.views import ExperimentResult, ScoreValue, SuiteSummary
from lorastudy.suite.safe_text import Privacy
from lorastudy.suite.settings import Settings

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
HARMLESS = "harmless"
_PRIVACY = Privacy()


def results(text: str, *, rank: int = 8) -> list[ExperimentResult]:
    """A study in which the text stands wherever a report takes text from somebody else."""
    settings = Settings(lora_rank=rank).model_dump(mode="json")
    text_in_settings = text.encode(
        "utf-8", "replace"
    ).decode()  # a suite file cannot hold half a surrogate pair
    settings |= dict.fromkeys(("base_model", "dataset_path", "eval_dataset_path"), text_in_settings)
    modules = ([text_in_settings], [text_in_settings, "q_proj"])  # what differs stands in the labels
    score = ScoreValue(value=1.5, unit="nats per token", version=1, num_items=4)
    done = [
        ExperimentResult(
            experiment_id=f"{arm}-{seed}", suite_name="study", name=f"{arm}_{seed}", arm=arm, experiment_type="custom", seed=seed,
            settings=settings | {"lora_rank": number, "target_modules": modules[number - 1]}, status="completed", engine="packed", scores={("eval", "loss"): score},
        )
        for number, arm in enumerate(("one", "two"), start=1)
        for seed in (0, 1)
    ]  # fmt: skip
    failed = replace(
        done[0], experiment_id="f", seed=7, status="failed", scores={}, failure_kind="error", failure_message=text,
        traceback=f'File "{text}", line 1\n{text}',
    )  # fmt: skip
    return [*done, failed]


def pages(text: str) -> tuple[str, str]:
    """The report in Markdown and in HTML, with the figures of its scores."""
    found = [without_traces(result, _PRIVACY) for result in results(text)]
    suite = SuiteSummary(suite_name="study", description=text, created_at="", num_experiments=len(found))
    parts = [_part(study.labelled(), suite) for study in split_studies(found)]
    blocks = presentable(compose(parts, output=Path("RESULTS.md")), _PRIVACY)
    markdown = render_markdown(blocks, output=Path("RESULTS.md"), plots=Path("results/plots"))
    return markdown, render_html(blocks)


def _part(study: Study, suite: SuiteSummary) -> Part:
    analysis, held_out = analyse(study), held_out_curves(study)
    figures = study_figures(analysis, {}, held_out=held_out)
    text = suite.description
    answers = (
        RowOfArms(
            split="test", row=1, prompt=text, reference=text, answers={analysis.completed[0].arm.name: text}
        ),
    )
    return Part(
        studied=Studied(analysis=analysis, suite=suite), figures=figures, held_out=held_out, answers=answers
    )


class _Elements(HTMLParser):
    """Elements and attributes in their order."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(f"<{tag} {' '.join(name for name, _ in attrs)}>")

    def handle_endtag(self, tag: str) -> None:
        self.seen.append(f"</{tag}>")

    def handle_comment(self, data: str) -> None:
        self.seen.append("<!--")


def html_structure(page: str) -> list[str]:
    """What a page is built of, without its text."""
    elements = _Elements()
    elements.feed(page)
    return elements.seen


def markdown_structure(text: str) -> list[str]:
    """What CommonMark with tables makes of a text, without the text itself; line breaks count, escapes do not."""
    tokens = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).parse(text)
    inner = (each for token in tokens for each in (token, *(token.children or ())))
    return [each.type for each in inner if each.type not in {"text", "text_special"}]


def violation(text: str) -> str | None:
    """How the report with this text differs from the harmless one; None where it does not."""
    expected, found = pages(HARMLESS), pages(text)
    for structure, what, index in ((markdown_structure, "Markdown", 0), (html_structure, "HTML", 1)):
        one, other = structure(expected[index]), structure(found[index])
        if one != other:
            at = next(
                (i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b),
                min(len(one), len(other)),
            )
            return f"{what} is built otherwise from part {at} on: {other[at : at + 3]}"
    with contextlib.suppress(UnicodeEncodeError):
        "".join(found).encode()
        return None
    return "the report cannot be written as UTF-8"


def browser() -> str | None:
    """A browser, if this machine has one."""
    return next(filter(None, map(shutil.which, BROWSERS)), None)


def in_browser(texts: Sequence[str], folder: Path, *, program: str) -> str | None:
    """What a script among the texts did to the page; None where none ran."""
    _, page = pages("\n".join(texts).encode("utf-8", "replace").decode())
    file = folder / "page.html"
    file.write_text(page, encoding="utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
               "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", f"--user-data-dir={folder / 'profile'}",
               "--virtual-time-budget=5000", "--dump-dom"]  # fmt: skip
    done = subprocess.run(
        [program, *options, file.as_uri()], capture_output=True, encoding="utf-8", check=True, timeout=120
    )
    root = re.search(r"<html[^>]*>", done.stdout)
    return None if root and "owned" not in root[0] else f"a script ran: {root and root[0]}"


def allowed(script: str, page: str) -> bool:
    """Whether the page's policy lets this script run."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return f"sha256-{digest}" in page or re.search(r"script-src [^;]*unsafe-inline", page) is not None
