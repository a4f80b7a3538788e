"""Rows from the Hugging Face hub. Only this file imports `datasets`.

It runs in its own process: `python -m lorastudy.data.hub tatsu-lab/alpaca rows.jsonl`.
"""

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lorastudy.errors import DataError

Loader = Callable[..., Iterable[Mapping[str, Any]]]


def fetch(dataset_id: str, *, load_dataset: Loader | None = None) -> Iterator[dict[str, Any]]:
    """The rows of the `train` split of a data set, `org/name` or `org/name:configuration`.

    `load_dataset` defaults to the one of `datasets`.

    Raises:
        DataError: the data set cannot be reached, does not exist, or has no such split.
    """
    if load_dataset is None:
        import datasets

        datasets.disable_progress_bars()
        load_dataset = datasets.load_dataset
    name, _, configuration = dataset_id.partition(":")
    try:
        yield from map(dict, load_dataset(name, configuration or None, split="train"))
    except ConnectionError as error:
        raise DataError(
            f"{dataset_id}: the hub cannot be reached. Without network: download the data set on another "
            "machine (https://huggingface.co/datasets/" + name + ", a JSON, CSV or Parquet file), then "
            "`lorastudy prepare --dataset FILE`"
        ) from error
    except (ValueError, OSError) as error:  # `datasets` raises these for a wrong name, configuration or split
        raise DataError(f"{dataset_id}: {' '.join(str(error).split())}") from error


def main(arguments: Sequence[str], *, load_dataset: Loader | None = None) -> int:
    """Write the rows of the data set as JSONL. On failure, print one line to standard error and return 2."""
    dataset_id, path = arguments
    file = Path(path)
    try:
        with file.open("w", encoding="utf-8") as lines:
            for row in fetch(dataset_id, load_dataset=load_dataset):
                lines.write(f"{json.dumps(row, ensure_ascii=False)}\n")
    except DataError as error:
        problem = str(error)
    except TypeError as error:  # JSON cannot hold images, audio, dates
        problem = f"{dataset_id}: has columns that are not text: {error}"
    else:
        return 0
    file.unlink()
    print(problem, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
