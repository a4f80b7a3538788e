"""How to run the study again: the commands, and the suite as a file.

The file is the suite's own, as the store keeps it. Of a store of an older version, and of runs that no one suite asked
for, it is put together from the runs and from what was stated of them.
"""

import shlex
from pathlib import Path

from lorastudy.report.document import Block, Code, CodeBlock, Heading, Paragraph
from lorastudy.stats.study import Study, StudyArm
from lorastudy.suite.question import Question, all_seeds, configuration_name
from lorastudy.suite.suite import Arm, Suite
from lorastudy.suite.suite_writing import suite_yaml


def reproduce_blocks(suite: Suite, *, level: int, output: Path) -> list[Block]:
    """Commands and the suite file. Paths in it are those of the machine that ran it."""
    report = ["lorastudy", "report", "--suite-name", suite.name, "--output", output.name]
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
        CodeBlock(suite_yaml(suite).rstrip("\n"), "yaml"),
    ]


def suite_of(study: Study, *, design: Suite | None = None, question: Question | None = None) -> Suite:
    """The suite that asks for the study: its design where it asks for all the runs, else one that is made of them."""
    if design is not None and _asks_for(design, study):
        return design
    asked = question or Question()
    return Suite(
        name=study.suite_name,
        description="",
        experiment_type=study.experiment_type,
        path=None,
        arms=_made_of(study, asked),
        primary_metric=asked.primary_metric,
        margin=asked.margin,
        reference=asked.reference,
        given_tuning_seeds=asked.tuning_seeds or None,
        rungs=asked.rungs,
    )


def _asks_for(design: Suite, study: Study) -> bool:
    """Whether the study is the design's: runs that were asked for one by one share a name, and the last has its design kept.

    Held by number and seeds: settings are not those of the file where an experiment type decides some of them.
    """
    if any(arm.seeks_rate for arm in design.arms):
        # Rates that are looked for are not in the design.
        asked = {arm.settings.model_copy(update={"learning_rate": 1.0}) for arm in design.arms}
        found = {arm.configuration for arm in study.arms}
        is_all = len(asked) == len(found)
    else:
        is_all = len(design.arms) == len(study.arms)
    seeds = {*all_seeds(arm.seeds for arm in design.arms), *design.tuning_seeds}
    ran = {result.seed for result in study.results}
    return design.experiment_type == study.experiment_type and is_all and ran <= seeds


def _made_of(study: Study, question: Question) -> tuple[Arm, ...]:
    """An arm for each of the study's; where rates were looked for, one for each configuration, which looks again."""
    if not question.tuning_seeds:
        return tuple(
            Arm(name=_name(arm), settings=arm.typed_settings, seeds=tuple(r.seed for r in arm.results))
            for arm in study.arms
        )
    by_configuration = {arm.configuration: arm for arm in study.arms}
    return tuple(
        Arm(
            name=configuration_name(_name(arm), arm.typed_settings.learning_rate),
            settings=arm.typed_settings,
            seeds=question.seeds,
            seeks_rate=True,
        )
        for arm in by_configuration.values()
    )


def _name(arm: StudyArm) -> str:
    # "name #2" is this report's own, for a second configuration of that name; a suite file allows no "#".
    return arm.name.replace(" #", ".")
