"""What ruff does not check of the style: the length of modules, positional parameters, and every exception to a rule."""

import ast
import re
import tokenize
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "lorastudy"
MAX_LINES = 600
MAX_POSITIONAL = 2

#: Functions that take more than two positional parameters, and why they cannot do otherwise.
POSITIONAL_ALLOWED = {
    "cli/best.py best": "a command: Typer makes options of its parameters",
    "cli/check.py check": "a command: Typer makes options of its parameters",
    "cli/data.py preview": "a command: Typer makes options of its parameters",
    "cli/suite.py demo": "a command: Typer makes options of its parameters",
    "cli/estimate.py estimate": "a command: Typer makes options of its parameters",
    "cli/evaluate.py evaluate": "a command: Typer makes options of its parameters",
    "cli/store.py export": "a command: Typer makes options of its parameters",
    "cli/store.py import_results": "a command: Typer makes options of its parameters",
    "cli/data.py prepare": "a command: Typer makes options of its parameters",
    "cli/recommend.py recommend": "a command: Typer makes options of its parameters",
    "cli/report.py report": "a command: Typer makes options of its parameters",
    "cli/resume.py resume": "a command: Typer makes options of its parameters",
    "cli/run.py run": "a command: Typer makes options of its parameters",
    "cli/suite.py suite": "a command: Typer makes options of its parameters",
    "cli/tune.py tune": "a command: Typer makes options of its parameters",
    "cli/running.py StopSignals.__exit__": "the signature of `with`",
    "cli/progress.py Progress.__exit__": "the signature of `with`",
    "engine/attention.py row_attention": "transformers' attention interface calls it by position",
    "engine/attention.py _BlockAttention.forward": "torch calls `autograd.Function.forward` by position",
    "engine/attention.py _Reordered.forward": "torch calls `autograd.Function.forward` by position",
    "engine/fused_ops.py _RmsNorm.forward": "torch calls `autograd.Function.forward` by position",
    "engine/fused_ops.py _Rotation.forward": "torch calls `autograd.Function.forward` by position",
    "engine/fused_ops.py rotated": "stands for a function of transformers that is called by position",
    "engine/attention.py block_attention": "query, key and value, in the order that attention has them everywhere",
    "engine/memory_trace.py _fused_attention": "stands for a function of torch that is called by position",
    "engine/memory_trace.py Ledger.__torch_dispatch__": "torch calls it by position",
    "engine/loss.py _CompletionLoss.forward": "torch calls `autograd.Function.forward` by position",
    "executors/process.py JobWorker.__exit__": "the signature of `with`",
    "engine/meter.py MemoryMeter.__exit__": "the signature of `with`",
    "store/ingest.py _take_checkpoint_profile": "one of a table of functions with one signature",
    "store/ingest.py _take_incident": "one of a table of functions with one signature",
    "store/ingest.py _take_environment": "one of a table of functions with one signature",
    "store/ingest.py _take_data_summary": "one of a table of functions with one signature",
    "store/ingest.py _take_trivial_score": "one of a table of functions with one signature",
    "store/ingest.py _take_pack_profile": "one of a table of functions with one signature",
    "store/ingest.py _take_profile": "one of a table of functions with one signature",
    "store/ingest.py _take_prediction": "one of a table of functions with one signature",
    "store/ingest.py _take_score": "one of a table of functions with one signature",
    "store/ingest.py _take_generation": "one of a table of functions with one signature",
    "store/ingest.py _take_outcome": "one of a table of functions with one signature",
    "store/tracker.py ExperimentTracker.__exit__": "the signature of `with`",
}

#: Every rule that is switched off for a line: file, rule, how often. The reason stands in the line itself.
EXCEPTIONS_ALLOWED = Counter(
    {
        ("benchmarks/sequential.py", "misc"): 2,
        ("docs/screenshots.py", "S603"): 2,
        ("src/lorastudy/cli/running.py", "ARG002"): 1,
        ("src/lorastudy/data/prepare.py", "S603"): 1,
        ("src/lorastudy/engine/attention.py", "ARG001"): 1,
        ("src/lorastudy/engine/attention.py", "no-untyped-call"): 3,
        ("src/lorastudy/engine/fused_ops.py", "no-untyped-call"): 2,
        ("src/lorastudy/engine/lora.py", "no-untyped-call"): 2,
        ("src/lorastudy/engine/memory_trace.py", "no-untyped-call"): 2,
        ("benchmarks/kernel_count.py", "no-untyped-call"): 1,
        ("src/lorastudy/engine/loss.py", "no-untyped-call"): 1,
        ("src/lorastudy/engine/packed.py", "no-untyped-call"): 1,
        ("src/lorastudy/engine/reference.py", "no-untyped-call"): 1,
        ("src/lorastudy/executors/process.py", "S603"): 1,
        ("src/lorastudy/executors/multi_worker.py", "BLE001"): 1,
        ("src/lorastudy/executors/multi_worker.py", "misc"): 1,
        ("src/lorastudy/lab/catalogue.py", "S311"): 1,
        ("tests/forks.py", "BLE001"): 1,
        ("src/lorastudy/train/outcomes.py", "ARG002"): 1,
        ("tests/torture/faults/damaged_checkpoints.py", "BLE001"): 1,
        ("tests/torture/harness.py", "BLE001"): 1,
        ("tests/torture/harness.py", "return-value"): 1,
        ("tests/unit/suite/test_experiment_types.py", "misc"): 1,
        ("tests/unit/test_docs.py", "attr-defined"): 1,
        ("tests/unit/protocol/test_records.py", "PT011"): 1,
    }
)

_EXCEPTION = re.compile(
    r"#\s*(?:noqa:\s*(?P<noqa>[A-Z0-9, ]+)|type:\s*ignore\[(?P<ignore>[^]]+)\])(?P<rest>.*)"
)
_SWITCH = re.compile(r"#\s*(?:noqa|type:\s*ignore|ruff:\s*noqa|mypy:|pylint:|pragma:)")


@dataclass(frozen=True, kw_only=True)
class SwitchedOff:
    """A comment that switches a rule off."""

    file: str
    line: int
    rules: tuple[str, ...]
    reason: str


def modules() -> list[Path]:
    return sorted(SOURCE.rglob("*.py"))


def name_of(path: Path) -> str:
    return path.relative_to(SOURCE).as_posix()


def functions(
    tree: ast.AST, *, inside: str = ""
) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Every function under the name of its class, the nested ones too; whether it is a method tells the dot."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield inside + node.name, node
            yield from functions(node)
        else:
            yield from functions(node, inside=f"{node.name}." if isinstance(node, ast.ClassDef) else inside)


def num_positional(name: str, function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """How many positional parameters there are, without `self`, `cls` or the `ctx` of an autograd function."""
    parameters = [*function.args.posonlyargs, *function.args.args]
    decorators = {node.id for node in function.decorator_list if isinstance(node, ast.Name)}
    is_bound = "." in name and (
        "staticmethod" not in decorators or (parameters[:1] and parameters[0].arg == "ctx")
    )
    return len(parameters) - bool(is_bound)


def switched_off(path: Path) -> Iterator[SwitchedOff]:
    """Every comment of a file that switches a rule off; one that names no rule has none."""
    with tokenize.open(path) as file:
        comments = [
            token for token in tokenize.generate_tokens(file.readline) if token.type == tokenize.COMMENT
        ]
    for comment in comments:
        if not _SWITCH.match(comment.string):
            continue
        match = _EXCEPTION.match(comment.string)
        rules = (match["noqa"] or match["ignore"]) if match else ""
        yield SwitchedOff(
            file=path.relative_to(ROOT).as_posix(),
            line=comment.start[0],
            rules=tuple(rule.strip() for rule in rules.split(",") if rule.strip()),
            reason=match["rest"].strip(" -#") if match else "",
        )


@cache
def all_switched_off() -> list[SwitchedOff]:
    folders = [ROOT / name for name in ("src", "tests", "scripts", "docs", "benchmarks")]
    paths = [path for folder in folders for path in sorted(folder.rglob("*.py"))]
    return [found for path in paths for found in switched_off(path)]


def test_modules_are_short() -> None:
    lengths = {name_of(path): len(path.read_text(encoding="utf-8").splitlines()) for path in modules()}
    assert {name: length for name, length in lengths.items() if length >= MAX_LINES} == {}


def test_after_the_second_parameter_names_are_given() -> None:
    found = {
        f"{name_of(path)} {name}"
        for path in modules()
        for name, function in functions(ast.parse(path.read_text(encoding="utf-8")))
        if num_positional(name, function) > MAX_POSITIONAL
    }
    assert found - POSITIONAL_ALLOWED.keys() == set(), "make them keyword-only, or say here why not"
    assert POSITIONAL_ALLOWED.keys() - found == set(), "no longer needed here"


def test_every_rule_that_is_switched_off_is_on_the_list() -> None:
    found = Counter((each.file, rule) for each in all_switched_off() for rule in each.rules or ("all",))
    assert found - EXCEPTIONS_ALLOWED == Counter(), "mend the line, or add it to the list"
    assert EXCEPTIONS_ALLOWED - found == Counter(), "no longer needed here"


def test_every_rule_that_is_switched_off_says_why() -> None:
    assert [f"{each.file}:{each.line}" for each in all_switched_off() if len(each.reason) < 4] == []


def test_no_module_is_a_junk_drawer() -> None:
    junk = {"utils", "util", "common", "helpers", "helper", "misc"}
    assert [name_of(path) for path in SOURCE.rglob("*") if path.stem in junk] == []


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("def f(a, b, *, c): ...", 2),
        ("def f(a, b, c=1): ...", 3),
        ("class C:\n    def f(self, a, b): ...", 2),
        ("class C:\n    def f(self, a, b, c): ...", 3),
        ("class C:\n    @staticmethod\n    def f(a, b, c): ...", 3),
        ("class C:\n    @staticmethod\n    def forward(ctx, a, b): ...", 2),
        ("class C:\n    def f(self):\n        def g(a, b, c): ...", 3),
        ("if True:\n    def f(a, b, c): ...", 3),
    ],
)
def test_positional_parameters_are_counted(source: str, expected: int) -> None:
    assert max(num_positional(name, node) for name, node in functions(ast.parse(source))) == expected


@pytest.mark.parametrize(
    ("comment", "rules", "reason"),
    [
        ("# noqa: S603 - our own module", ("S603",), "our own module"),
        ("# noqa: S603, S607", ("S603", "S607"), ""),
        ("# type: ignore[misc]  # the point", ("misc",), "the point"),
        ("# type: ignore", (), ""),
        ("# noqa", (), ""),
        ("# ruff: noqa", (), ""),
    ],
)
def test_comments_that_switch_rules_off_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, comment: str, rules: tuple[str, ...], reason: str
) -> None:
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    (tmp_path / "module.py").write_text(f"x = '# noqa'  {comment}\ny = 1  # an ordinary comment\n")
    (found,) = switched_off(tmp_path / "module.py")
    assert (found.line, found.rules, found.reason) == (1, rules, reason)
