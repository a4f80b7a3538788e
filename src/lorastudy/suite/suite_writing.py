"""A suite as a file again: the inverse of loading.

The file asks what the suite asked: loaded, it gives the same question and the same experiments, and a learning rate that
was looked for is looked for again. All settings stand in it, so that a later version's defaults change nothing; comments
and the short forms of the first file (`factors`, `racing: true`) are gone. How work is laid out is left to the planner.
"""

import io
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from ruamel.yaml import YAML

from lorastudy.suite.effects import NEEDED
from lorastudy.suite.experiment import canonical_json
from lorastudy.suite.settings import AUTO, Settings
from lorastudy.suite.suite import Arm, Suite, SuiteKeys

#: How work is laid out and saved is no part of the study.
_OF_THE_LAYOUT = {"max_arms_per_pack", "checkpoint_steps", "checkpoint_minutes"}


def suite_yaml(suite: Suite) -> str:
    """The text of a suite file: what is asked and what all arms share on top, what differs in each entry."""
    entries = _entries(suite.arms)
    shared = {key: value for key, value in entries[0].items() if _is_in_all(entries, key, value=value)}
    shared.pop("name", None)
    body = {**_asked(suite), **shared}
    # An entry without a key would be one that nobody understands.
    own = [{key: value for key, value in entry.items() if key not in shared} for entry in entries]
    body["experiments"] = [entry or {"lora_rank": shared["lora_rank"]} for entry in own]
    return _dumped(body)


def _asked(suite: Suite) -> dict[str, Any]:
    """The keys that stand at the top alone; those that say what goes without saying are left out."""
    asked = {
        "suite_name": suite.name,
        "description": suite.description,
        "experiment_type": suite.experiment_type,
        "primary_metric": suite.primary_metric,
        "margin": None if suite.margin is None else suite.margin.as_written(),
        "reference": suite.reference,
        "tuning_seeds": suite.given_tuning_seeds and list(suite.given_tuning_seeds),
        "racing": list(suite.rungs) or None,
    }
    kept = {"suite_name", "experiment_type", "primary_metric"}
    defaults = {key: SuiteKeys.model_fields[key].default for key in asked}
    return {
        key: value
        for key, value in asked.items()
        if key in kept or (value is not None and value != defaults[key])
    }


def _entries(arms: Sequence[Arm]) -> list[dict[str, Any]]:
    """Every key of every entry. Arms that differ in their rate alone and follow each other are one entry with a list.

    So they came from one entry, and a name that was given stands once.
    """
    entries = []
    for _, group in itertools.groupby(map(_entry, arms), key=_but_for_the_rate):
        found = list(group)
        rates = [entry["learning_rate"] for entry in found]
        # Equal arms stand side by side as they did, so that whoever reads the file is told of them.
        if len(set(rates)) == len(rates) > 1 and AUTO not in rates:
            entries.append({**found[0], "learning_rate": rates})
        else:
            entries += found
    return entries


def _entry(arm: Arm) -> dict[str, Any]:
    settings = {
        key: value
        for key, value in arm.settings.model_dump(mode="json").items()
        if value is not None and key not in _OF_THE_LAYOUT and not _is_void(key, value, settings=arm.settings)
    }
    named = {} if arm.name is None else {"name": arm.name}
    rate = {"learning_rate": AUTO} if arm.seeks_rate else {}
    return {**named, **settings, **rate, "seeds": list(arm.seeds)}


def _is_void(key: str, value: Any, *, settings: Settings) -> bool:
    """Whether a suite file would be refused for the key, since another setting makes it void."""
    need = NEEDED.get(key)
    is_default = bool(value == Settings.model_fields[key].default)
    return need is not None and not is_default and not need.holds(getattr(settings, need.key))


def _but_for_the_rate(entry: Mapping[str, Any]) -> str:
    return canonical_json({key: value for key, value in entry.items() if key != "learning_rate"})


def _is_in_all(entries: Sequence[Mapping[str, Any]], key: str, *, value: Any) -> bool:
    return all(key in entry and canonical_json(entry[key]) == canonical_json(value) for entry in entries)


def _dumped(body: Mapping[str, Any]) -> str:
    yaml = YAML()
    yaml.default_flow_style = False
    yaml.width = 100
    # Equal lists would otherwise become anchors and aliases, which nobody wants to read.
    yaml.representer.ignore_aliases = lambda *_: True
    stream = io.StringIO()
    yaml.dump(dict(body), stream)
    return stream.getvalue()
