"""Where things lie unless the user says otherwise: the files of a study in its folder, and the user's cache folder."""

import os
from pathlib import Path

#: The results store.
DATABASE = "results/experiments.db"
#: The run folders: records, adapters and logs of each attempt at a pack.
RUNS_DIR = Path("results/runs")
#: The trained adapters, each in `<name>/final_model`.
OUTPUT_DIR = Path("output")
#: The report in Markdown. Its HTML page lies beside it.
REPORT = Path("RESULTS.md")
#: The data sets that `lorastudy prepare` writes.
DATA_DIR = Path("data")


def cache_folder(kind: str) -> Path:
    """`$XDG_CACHE_HOME/lorastudy/<kind>`, by default under `~/.cache`."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "lorastudy" / kind
