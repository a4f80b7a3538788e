"""How far each method is from PEFT alone, in each engine that trains it.

    python -m benchmarks.methods     writes benchmarks/results/methods.json (`docs/methods.md` is made of it)

It runs tests/parity/test_methods.py, which trains each method on random models of four families in our engine and in a
plain loop with PEFT, and keeps the errors of the tests that passed. A failed test ends it without a result.
"""

import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results" / "methods.json"
TESTS = ROOT / "tests" / "parity" / "test_methods.py"


class Recorder:
    """A plugin of pytest that keeps what tests record under `parity`."""

    def __init__(self) -> None:
        self.found: list[dict[str, Any]] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep the record of a test that passed."""
        if report.when == "call" and report.passed:
            records = [value for name, value in report.user_properties if name == "parity"]
            self.found += [value for value in records if isinstance(value, dict)]


def main() -> int:
    """Run the tests and write their errors. The exit code is pytest's."""
    recorder = Recorder()
    code = int(pytest.main([str(TESTS), "-q", "-x", "-k", "equals_peft_alone"], plugins=[recorder]))
    if code == 0:
        versions = {name: version(name) for name in ("torch", "transformers", "peft")}
        written = {"versions": versions, "results": recorder.found}
        RESULTS.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")
    return code


if __name__ == "__main__":
    sys.exit(main())
