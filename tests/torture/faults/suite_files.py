"""Suite files with mistakes: each is told where it is, or what the file says is what the suite does.

The mistakes come from a grammar (`suite_mistakes`) and, one in five, from Hypothesis. A file that loads is read a
second time in an obvious way, scalar by scalar and level by level: every key that stands in it must have become
what an arm does, or be named in a note.
"""

import contextlib
import itertools
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import hypothesis
from hypothesis import strategies as st
from ruamel.yaml import YAML
from ruamel.yaml.nodes import MappingNode, ScalarNode, SequenceNode

from lorastudy.errors import SuiteFileError
from lorastudy.suite.settings import Settings
from lorastudy.suite.suite import Suite, expand
from lorastudy.suite.suite_file import load_suite
from torture.harness import FaultResult, Row, counted, listed, tried
from torture.suite_mistakes import GOOD, VALUES, mistaken

ROW = Row(
    fault="mutated suite files (Hypothesis and a grammar of plausible mistakes)",
    must="0 tracebacks, 0 silently ignored keys, every error with file:line:col",
    short=300,
    default=2000,
    kept=10_000,
)
NAME = "s.yaml"
HYPOTHESIS_SHARE = 0.2

_PROBLEM = re.compile(r"s\.yaml:(?P<line>\d+):(?P<column>\d+): .")
_LENGTHS = ("num_train_epochs", "max_steps")
_HEADER = {"suite_name", "description", "experiment_type", "experiments", "factors"}
#: When a key that is not at its default does something.
_HAS_EFFECT: Mapping[str, Callable[[Settings], bool]] = {
    "bnb_4bit_quant_type": lambda s: s.quantization == "4bit",
    "bnb_4bit_use_double_quant": lambda s: s.quantization == "4bit",
    "warmup_ratio": lambda s: s.lr_scheduler_type != "constant",
    "warmup_steps": lambda s: s.lr_scheduler_type != "constant",
    "eval_fraction": lambda s: s.eval_dataset_path is None,
    "max_new_tokens": lambda s: s.max_generation_samples > 0,
    "exact_match_pattern": lambda s: s.max_generation_samples > 0,
}


def run(*, amount: int, seed: int, folder: Path) -> FaultResult:
    """Load `amount` mistaken files; a violation is anything but a located error or a suite that says the same."""
    counts: Counter[str] = Counter()
    violations: list[str] = []
    with contextlib.chdir(folder):
        Path("rows.jsonl").write_text("{}\n", encoding="utf-8")
        for number, content in enumerate(counted(_contents(amount, seed), total=amount)):
            Path(NAME).write_bytes(content)
            what, violation = judge(Path(NAME), content)
            counts[what] += 1
            if violation:
                kept = Path(f"violation-{number}.yaml")
                kept.write_bytes(content)
                violations.append(f"{violation} ({content[:300]!r})")
        if Path("canary").exists():
            violations.append("a file was executed")
    told = f"{counts['refused']} refused with their places, {counts['loaded']} loaded and say the same"
    return FaultResult(
        fault=ROW.fault,
        num_faults=counts.total(),
        num_violations=len(violations),
        detail="; ".join(filter(None, [told, listed(violations)])),
    )


def _contents(amount: int, seed: int) -> Iterator[bytes]:
    draw = random.Random(seed)
    num_from_hypothesis = int(amount * HYPOTHESIS_SHARE)
    yield from _from_hypothesis(num_from_hypothesis, seed)
    for _ in range(amount - num_from_hypothesis):
        yield mistaken(draw)


def _from_hypothesis(amount: int, seed: int) -> list[bytes]:
    """Good files with stretches replaced by whatever Hypothesis thinks of."""
    made: list[bytes] = []

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=max(1, amount),
        database=None,
        deadline=None,
        derandomize=False,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(data=st.data())
    def make(data: st.DataObject) -> None:
        text = data.draw(st.sampled_from(GOOD))
        for _ in range(data.draw(st.integers(1, 4))):
            start = data.draw(st.integers(0, len(text)))
            end = data.draw(st.integers(start, min(len(text), start + 12)))
            piece = data.draw(st.text(st.characters(codec="utf-8"), max_size=5) | st.sampled_from(VALUES))
            text = text[:start] + piece + text[end:]
        made.append(text.encode())

    make()
    return (made * (amount // max(1, len(made)) + 1))[:amount]


def judge(path: Path, content: bytes) -> tuple[str, str | None]:
    """`refused` or `loaded`, and what was violated in the end."""
    loaded = tried(lambda: _load(path))
    if isinstance(loaded, SuiteFileError):
        return "refused", _bad_message(loaded, content)
    if isinstance(loaded, Exception):
        return "broken", repr(loaded)
    found = tried(lambda: difference(loaded, content))
    return "loaded", f"the second reading failed: {found!r}" if isinstance(found, Exception) else found


def _load(path: Path) -> Suite:
    suite = load_suite(path)
    expand(suite, fingerprint_dataset=lambda _: "d", fingerprint_base=lambda _: "b")
    return suite


def _bad_message(error: SuiteFileError, content: bytes) -> str | None:
    num_lines = (
        content.count(b"\n")
        + content.count(b"\r")
        + content.count(b"\xc2\x85")
        + content.count(b"\xe2\x80")
        + 1
    )
    for problem in error.problems:
        match = _PROBLEM.match(problem)
        if match is None:
            return f"no place: {problem}"
        if not 1 <= int(match["line"]) <= num_lines + 1 or int(match["column"]) < 1:
            return f"a place outside the file: {problem}"
        if not problem.isprintable() or len(problem) > 800:
            return f"not one readable line: {problem[:100]!r}"
    return None if error.problems else "an error without a cause"


def difference(suite: Suite, content: bytes) -> str | None:
    """What the file says and the suite does not do, found by a second, obvious reading; None where there is nothing."""
    document = _value(YAML(typ="safe", pure=True).compose(content.decode("utf-8-sig")))
    top = {key: value for key, value in document.items() if key not in _HEADER}
    entries = document.get("experiments") or [{}]
    factors = document.get("factors") or {}
    expected = Counter(repr(arm) for entry in entries for arm in _arms(top, entry, factors=factors))
    found = Counter(repr((arm.name, arm.seeds, arm.settings)) for arm in suite.arms)
    if expected != found:
        return f"the file says {min(expected - found, default=None)}, the suite does {min(found - expected, default=None)}"
    stated = (document.get("suite_name") or suite.name, document.get("description", ""))
    if (
        stated != (suite.name, suite.description)
        or document.get("experiment_type", "custom") != suite.experiment_type
    ):
        return "the suite's name, description or type is not the file's"
    return _without_effect(top, entries, suite=suite) or _unnoted(top, entries, suite=suite)


def _arms(top: dict[str, Any], entry: dict[str, Any], *, factors: dict[str, list[Any]]) -> Iterator[Any]:
    """The arms of an entry: what stands nearer wins, a length replaces a length, lists multiply."""
    values = dict(top)
    if any(entry.get(key) is not None or key in factors for key in _LENGTHS):
        values = {key: value for key, value in values.items() if key not in _LENGTHS}
    values |= entry
    seeds = values.pop("seeds", 0)
    name = values.pop("name", None)
    choices = {key: [value] for key, value in values.items()} | factors
    if isinstance(values.get("learning_rate"), list):
        choices["learning_rate"] = values["learning_rate"]
    for chosen in itertools.product(*choices.values()):
        settings = Settings.model_validate(dict(zip(choices, chosen, strict=True)))
        yield name, tuple(seeds) if isinstance(seeds, list) else (seeds,), settings


def _without_effect(top: dict[str, Any], entries: list[dict[str, Any]], *, suite: Suite) -> str | None:
    for key, has_effect in _HAS_EFFECT.items():
        given = [values[key] for values in (top, *entries) if key in values]
        off = Settings.model_fields[key].default
        if (
            any(value != off for value in given)
            and not any(has_effect(arm.settings) for arm in suite.arms if getattr(arm.settings, key) != off)
            and any(getattr(arm.settings, key) != off for arm in suite.arms)
        ):
            return f"{key} has no effect, and nothing was said"
    return None


def _unnoted(top: dict[str, Any], entries: list[dict[str, Any]], *, suite: Suite) -> str | None:
    for key, value in top.items():
        overriding = _LENGTHS if key in _LENGTHS else (key,)
        is_overridden = all(
            key in entry or any(entry.get(other) is not None for other in overriding) for entry in entries
        )
        if value is not None and is_overridden and not any(f": {key}: " in note for note in suite.notes):
            return f"{key} is overridden everywhere, and nothing was said"
    return None


def _value(node: Any) -> Any:
    """A node of ruamel's as a value of YAML 1.2's core schema; a key that appears twice is an error."""
    if isinstance(node, MappingNode):
        keys = [_value(key) for key, _ in node.value]
        assert len(set(keys)) == len(keys), f"a key appears twice and was accepted: {keys}"
        return {key: _value(value) for key, (_, value) in zip(keys, node.value, strict=True)}
    if isinstance(node, SequenceNode):
        return [_value(item) for item in node.value]
    assert isinstance(node, ScalarNode)
    return node.value if node.style else _scalar(node.value)


def _scalar(text: str) -> Any:
    """An unquoted scalar, by Python's own conversions where those take no more than YAML does."""
    if text in {"", "~", "null", "Null", "NULL"}:
        return None
    if text.lower() in {"true", "false"} and text in {"true", "True", "TRUE", "false", "False", "FALSE"}:
        return text.lower() == "true"
    if not text.isascii() or "_" in text or text.lower().lstrip("+-") in {"inf", "nan", "infinity"}:
        return text
    for convert in (int, lambda t: int(t, 0) if t[:2] in {"0o", "0x"} else int(t), float):
        with contextlib.suppress(ValueError):
            return convert(text)
    return text
