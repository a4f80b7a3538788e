"""The control side reads data too, so nothing here may pull in the machine learning stack."""

import subprocess
import sys

_READ_AND_PREPARE = """
import sys
from lorastudy.data import batches, hub, load, near_copies, prepare, prompts, sources, token_sets, tokenise
from lorastudy.cli import data as command
heavy = {"torch", "transformers", "peft", "datasets", "pyarrow", "pandas", "numpy", "jinja2"} & set(sys.modules)
sys.exit(f"imported {heavy}" if heavy else 0)
"""


def test_importing_data_is_light():
    done = subprocess.run(
        [sys.executable, "-c", _READ_AND_PREPARE], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
