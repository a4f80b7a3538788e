"""How to run the study again: the commands, and the suite as a file, rebuilt from what the store holds."""

import io
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from lorastudy.analysis.study import Arm, Study, differing_settings, shared_settings
from lorastudy.report.document import Block, Code, CodeBlock, Heading, Paragraph


def reproduce_blocks(study: Study, *, level: int, output: Path, rungs: Sequence[float] = ()) -> list[Block]:
    """Commands and the suite file. Paths in it are those of the machine that ran it; `rungs` are those of its race."""
    report = ["lorastudy", "report", "--suite-name", study.suite_name, "--output", output.name]
    commands = f"lorastudy suite suite.yaml\n{shlex.join(report)}"
    return [
        Heading(level=level, text="Reproduce"),
        Paragraph(
            (
                "Save the settings below as ",
                Code("suite.yaml"),
                (
                    ". The numbers come out to the same bits on the same machine with the same library versions and "
                    "thread count; elsewhere they agree within the spread over seeds."
                ),
            )
        ),
        CodeBlock(commands, "bash"),
        CodeBlock(suite_yaml(study, rungs=rungs).rstrip("\n"), "yaml"),
    ]


def suite_yaml(study: Study, *, rungs: Sequence[float] = ()) -> str:
    """The study as a suite file: what all arms share on top, what differs in each entry."""
    seeds = {arm.name: [result.seed for result in arm.results] for arm in study.arms}
    common = seeds[study.arms[0].name] if len({tuple(value) for value in seeds.values()}) == 1 else None
    body: dict[str, Any] = {"suite_name": study.suite_name, "experiment_type": study.experiment_type}
    body |= {"racing": list(rungs)} if rungs else {}
    body |= {key: value for key, value in shared_settings(study.arms).items() if _is_said(key, value)}
    if common is not None:
        body["seeds"] = common
    keys = differing_settings(study.arms)
    body["experiments"] = [_entry(arm, keys, seeds=None if common else seeds[arm.name]) for arm in study.arms]
    return _dumped(body)


def _entry(arm: Arm, keys: tuple[str, ...], *, seeds: list[int] | None) -> dict[str, Any]:
    # "name #2" is this report's own, for a second configuration of that name; a suite file allows no "#".
    entry: dict[str, Any] = {"name": arm.name.replace(" #", ".")}
    entry |= {key: arm.settings[key] for key in keys if _is_said(key, arm.settings.get(key))}
    return entry if seeds is None else {**entry, "seeds": seeds}


def _is_said(key: str, value: Any) -> bool:
    """Whether a key is written: None is a key's absence, and the layout of packs is the planner's."""
    return value is not None and key not in _OF_THE_LAYOUT


#: How work is laid out and saved is no part of the study.
_OF_THE_LAYOUT = {"max_arms_per_pack", "checkpoint_steps", "checkpoint_minutes"}


def _dumped(body: dict[str, Any]) -> str:
    yaml = YAML()
    yaml.default_flow_style = False
    yaml.width = 100
    # Equal lists would otherwise become anchors and aliases, which nobody wants to read.
    yaml.representer.ignore_aliases = lambda *_: True
    stream = io.StringIO()
    yaml.dump(body, stream)
    return stream.getvalue()
