"""What a bad suite file is told: each row is a file and what must stand in the message."""

import re
import string
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lorastudy.errors import SuiteFileError
from lorastudy.suite.suite_file import load_suite

Write = Callable[[str], Path]
ENTRY = "experiments:\n  - lora_rank: 8\n"

BAD = {
    "misspelt key": (f"lora_rnk: 4\n{ENTRY}", "s.yaml:1:1: lora_rnk: unknown key (did you mean lora_rank?)"),
    "a letter of another alphabet": (
        f"l\u043era_rank: 4\n{ENTRY}",
        "(did you mean lora_rank?); '\u043e' in it is CYRILLIC SMALL LETTER O (U+043E)",
    ),
    "a letter that nobody sees": (
        f'"lora_rank\u200b": 4\n{ENTRY}',
        "s.yaml:1:1: lora_rank\\u200b: unknown key (did you mean lora_rank?); '\\u200b' in it is ZERO WIDTH SPACE (U+200B)",
    ),
    "a value of another alphabet": (f"quantization: \uff14bit\n{ENTRY}", "is FULLWIDTH DIGIT FOUR (U+FF14)"),
    "4-bit options without 4 bit": (
        f"quantization: 8bit\nbnb_4bit_quant_type: fp4\n{ENTRY}",
        "s.yaml:2:22: bnb_4bit_quant_type: has no effect without quantization: 4bit; remove it",
    ),
    "4-bit options in an entry without 4 bit": (
        "experiments:\n  - {quantization: 4bit}\n  - {bnb_4bit_use_double_quant: false}\n",
        "s.yaml:3:33: experiments[1].bnb_4bit_use_double_quant: has no effect without quantization: 4bit",
    ),
    "warmup of a constant rate": (
        f"lr_scheduler_type: constant\nwarmup_ratio: 0.1\n{ENTRY}",
        "s.yaml:2:15: warmup_ratio: has no effect with lr_scheduler_type: constant; write constant_with_warmup",
    ),
    "warmup steps of a constant rate": (
        f"lr_scheduler_type: constant\nwarmup_steps: 10\n{ENTRY}",
        "s.yaml:2:15: warmup_steps: has no effect with lr_scheduler_type: constant; write constant_with_warmup",
    ),
    "Adam's constants without Adam": (
        f"optim: sgd\nadam_beta1: 0.8\n{ENTRY}",
        "s.yaml:2:13: adam_beta1: has no effect with optim: adafactor or sgd, which are no AdamW; remove it",
    ),
    "an optimizer and one of a method": (
        f"method: lorafa\noptim: adafactor\n{ENTRY}",
        "s.yaml:2:8: optim: adafactor contradicts method: lorafa, which is an optimizer of its own; remove one",
    ),
    "an optimizer that the packed engine lacks": (
        f"engine: packed\noptim: adafactor\n{ENTRY}",
        "s.yaml:1:9: engine: packed does not train this arm: the packed engine does not have optim: adafactor; set engine: auto",
    ),
    "noise that the packed engine lacks": (
        f"engine: packed\nneftune_noise_alpha: 5\n{ENTRY}",
        "packed does not train this arm: the packed engine does not have neftune_noise_alpha: 5.0; set engine: auto",
    ),
    "a search for SGD's rate": (
        f"optim: sgd\nlearning_rate: auto\n{ENTRY}",
        "s.yaml:2:16: learning_rate: auto begins at rates known for AdamW, and those of sgd lie elsewhere; give a list",
    ),
    "another tool's optimizer": (
        f"optim: adamw_torch_fused\n{ENTRY}",
        "s.yaml:1:8: optim: must be one of adamw_torch, adamw_8bit, paged_adamw_8bit, adafactor, sgd, not",
    ),
    "two lengths of the warm-up": (
        f"warmup_ratio: 0.1\nwarmup_steps: 10\n{ENTRY}",
        "s.yaml:2:15: warmup_steps: warmup_ratio and warmup_steps both say how long the rate rises; keep one",
    ),
    "a warm-up as long as the training": (
        f"max_steps: 10\nwarmup_steps: 10\n{ENTRY}",
        "s.yaml:2:15: warmup_steps: must be less than the 10 steps of the training, not 10",
    ),
    "a misspelt schedule": (
        f"lr_scheduler_type: cosine_with_restart\n{ENTRY}",
        "cosine_with_restart' (did you mean cosine_with_restarts?)",
    ),
    "a schedule that follows a loss": (
        f"lr_scheduler_type: reduce_lr_on_plateau\n{ENTRY}",
        "s.yaml:1:20: lr_scheduler_type: reduce_lr_on_plateau follows a measured loss, so arms would not have the rates",
    ),
    "a misspelt option": (
        f"lr_scheduler_type: cosine\nlr_scheduler_kwargs: {{num_cycle: 2}}\n{ENTRY}",
        "s.yaml:2:22: lr_scheduler_kwargs: cosine has no option 'num_cycle' (did you mean num_cycles?)",
    ),
    "an option of another schedule": (
        f"lr_scheduler_type: polynomial\nlr_scheduler_kwargs: {{num_decay_steps: 2}}\n{ENTRY}",
        "lr_scheduler_kwargs: polynomial has no option 'num_decay_steps'; it has lr_end, power",
    ),
    "an option without a schedule": (
        f"lr_scheduler_kwargs: {{power: 2}}\n{ENTRY}",
        "s.yaml:1:22: lr_scheduler_kwargs: linear has no option 'power'; it has none",
    ),
    "an option out of bounds": (
        f"lr_scheduler_type: cosine_with_min_lr\nlr_scheduler_kwargs: {{min_lr_rate: 2}}\n{ENTRY}",
        "lr_scheduler_kwargs: min_lr_rate must be a share of the learning rate from 0 to 1, not 2",
    ),
    "no lowest rate": (
        f"lr_scheduler_type: cosine_with_min_lr\n{ENTRY}",
        "lr_scheduler_kwargs: cosine_with_min_lr needs one of min_lr and min_lr_rate, such as {min_lr_rate: 0.1}",
    ),
    "no steps of the decay": (
        f"lr_scheduler_type: warmup_stable_decay\n{ENTRY}",
        "warmup_stable_decay needs num_decay_steps, such as {num_decay_steps: 50}",
    ),
    "a decay longer than the training": (
        ("max_steps: 20\nwarmup_steps: 5\nlr_scheduler_type: warmup_stable_decay\n"
        f"lr_scheduler_kwargs: {{num_decay_steps: 16}}\n{ENTRY}"),
        "s.yaml:4:22: lr_scheduler_kwargs: the warm-up and warmup_stable_decay's own steps are 21 together, more than the 20",
    ),
    "a lowest rate above the rate": (
        f"lr_scheduler_type: polynomial\nlr_scheduler_kwargs: {{lr_end: 1e-3}}\n{ENTRY}",
        "lr_end is 0.001, and the learning rate that falls to it is 0.0002; lower lr_end",
    ),
    "a lowest rate of a search": (
        ("learning_rate: auto\nlr_scheduler_type: cosine_with_min_lr\n"
        f"lr_scheduler_kwargs: {{min_lr: 1e-5}}\n{ENTRY}"),
        "min_lr is a rate of its own, and learning_rate: auto tries many; give min_lr_rate, a share of it",
    ),
    "a share of no rows": (
        f"eval_dataset_path: rows.jsonl\neval_fraction: 0.2\n{ENTRY}",
        "s.yaml:2:16: eval_fraction: has no effect, as eval_dataset_path names the held-out rows",
    ),
    "the length of no answers": (
        f"max_generation_samples: 0\nmax_new_tokens: 8\n{ENTRY}",
        "s.yaml:2:17: max_new_tokens: has no effect, as max_generation_samples is 0",
    ),
    "a factor without end": (f"factors: {{lora_rank: {list(range(1, 10_010))}}}", "factors.lora_rank: has 10009 values; a suite has at most 10000"),
    "misspelt in an entry": (
        f"{ENTRY}    lerning_rate: 1\n",
        "s.yaml:3:5: experiments[0].lerning_rate: unknown key (did you mean learning_rate?)",
    ),
    "another tool's name": (f"lr: 1e-4\n{ENTRY}", "s.yaml:1:1: lr: unknown key (did you mean learning_rate?)"),
    "unlike any key": (f"zzzz: 1\n{ENTRY}", "s.yaml:1:1: zzzz: unknown key; docs/suite-file.md lists all keys"),
    "name at the top": (f"name: a\n{ENTRY}", "did you mean suite_name?"),
    "top key in an entry": (f"{ENTRY}    suite_name: a\n", "s.yaml:3:5: experiments[0].suite_name: stands at the top"),
    "the best of no checkpoints": (
        f"test_fraction: 0.1\nselect_checkpoint: best\n{ENTRY}",
        "s.yaml:2:20: select_checkpoint: needs scores during training; add eval_steps, such as eval_steps: 0.1",
    ),
    "the best checkpoint without rows to report on": (
        f"eval_steps: 0.1\n{ENTRY}    select_checkpoint: best\n",
        "experiments[0].select_checkpoint: chooses by the held-out rows, so a result needs rows that chose nothing; add test_",
    ),
    "an early stop in one of two entries without scores": (
        "test_fraction: 0.1\nearly_stopping_patience: 3\nexperiments:\n  - {lora_rank: 4, eval_steps: 0.1}\n  - {lora_rank: 8}\n",
        "s.yaml:2:26: early_stopping_patience: needs scores during training",
    ),
    "no patience at all": (
        f"early_stopping_patience: 0\n{ENTRY}",
        "s.yaml:1:26: early_stopping_patience: must be a whole number of at least 1, or null, not 0",
    ),
    "a threshold without patience": (
        f"early_stopping_threshold: 0.01\n{ENTRY}",
        "s.yaml:1:27: early_stopping_threshold: has no effect without early_stopping_patience; add that, or remove it",
    ),
    "points that never come": (
        f"eval_steps: 0\n{ENTRY}",
        "s.yaml:1:13: eval_steps: must be a whole number of at least 1, or a number greater than 0 and less than 1, or null, not 0",
    ),
    "points beyond the end": (
        f"max_steps: 24\neval_steps: 24\n{ENTRY}",
        "s.yaml:2:13: eval_steps: must be less than the 24 steps of the training (max_steps), not 24",
    ),
    "a share beyond the end, in an entry": (
        "max_steps: 2\nexperiments:\n  - {eval_steps: 0.6}\n",
        "s.yaml:3:18: experiments[0].eval_steps: must be less than the 2 steps of the training (max_steps), not 0.6",
    ),
    "too small": ("experiments: [{lora_rank: 0}]", "must be a whole number from 1 to 4096, not 0"),
    "too large": (f"learning_rate: 1e3\n{ENTRY}", "s.yaml:1:16: learning_rate: must be a number greater than 0 and less than 10, or auto, not 1000.0"),
    "a fraction that is whole": ("experiments: [{lora_rank: 16.0}]", "not 16.0 (write 16)"),
    "quoted number": ("experiments: [{lora_rank: '16'}]", "not '16' (remove the quotes)"),
    "quoted alpha": (f"lora_alpha: '32'\n{ENTRY}", "(remove the quotes)"),
    "off for a number": (f"lora_dropout: off\n{ENTRY}", "must be a number of at least 0 and less than 1, not 'off'"),
    "no for true or false": (f"use_rslora: no\n{ENTRY}", "must be true or false, not 'no' (write false)"),
    "true for a number": (f"max_steps: true\n{ENTRY}", "must be a whole number of at least 1, or null, not true"),
    "number for text": (f"base_model: 7\n{ENTRY}", "must be text that is not empty, not 7 (put it in quotes)"),
    "nothing given": (f"lora_rank:\n{ENTRY}", "not null (nothing)"),
    "infinite": (f"learning_rate: .inf\n{ENTRY}", "not infinity"),
    "overflowing": (f"learning_rate: 1e999\n{ENTRY}", "not infinity"),
    "not a number": (f"weight_decay: .nan\n{ENTRY}", "not NaN"),
    "endless digits": (f"max_steps: {'9' * 5000}\n{ENTRY}", "a number with more than 100 digits"),
    "one of few": (f"quantization: 4bits\n{ENTRY}", "one of 4bit, 8bit, fp16, bf16, fp32, not '4bits' (did you mean 4bit?)"),
    "a module without a list": (f"target_modules: q_proj\n{ENTRY}", "(for module names write a list: [q_proj])"),
    "no modules": (f"target_modules: []\n{ENTRY}", "or a list of one or more names, not an empty list"),
    "alpha policy": (f"lora_alpha: twice\n{ENTRY}", "'twice' is neither a number nor a policy such as r, 2r or 0.5r"),
    "alpha of nothing": (f"lora_alpha: 0r\n{ENTRY}", "the factor must be greater than 0"),
    "endless alpha": (f"lora_alpha: {'9' * 400}r\n{ENTRY}", "at most 1000000"),
    "regular expression": (f"exact_match_pattern: '('\n{ENTRY}", "not a regular expression"),
    "endless regular expression": (f"exact_match_pattern: '(a{{{'9' * 30}}})'\n{ENTRY}", "not a regular expression"),
    "negative layer": (f"layers_to_transform: [-1]\n{ENTRY}", "whole numbers of at least 0, or null, not [-1]"),
    "list for one value": ("experiments: [{lora_rank: [4, 8]}]", "must be a whole number from 1 to 4096, not [4, 8]"),
    "no learning rates": (f"learning_rate: []\n{ENTRY}", "must be a list of values"),
    "one bad learning rate": (f"learning_rate: [1e-4, -1]\n{ENTRY}", "s.yaml:1:23: learning_rate[1]: must be"),
    "learning rate twice": (f"learning_rate: [2e-4, 0.0002]\n{ENTRY}", "0.0002 appears twice"),
    "both lengths": (f"max_steps: 3\nnum_train_epochs: 1\n{ENTRY}", "s.yaml:2:19: num_train_epochs: num_train_epochs and max_steps both"),
    "both lengths in an entry": (f"{ENTRY}    max_steps: 3\n    num_train_epochs: 1\n", "s.yaml:4:23: experiments[0].num_train_epochs:"),
    "experiments and factors": (f"factors: {{lora_rank: [4]}}\n{ENTRY}", "s.yaml:2:1: factors: experiments and factors are both given"),
    "no arms": ("suite_name: a\n", "s.yaml:1:1: has no arms; add `experiments:`"),
    "empty experiments": ("experiments: []\n", "at least one, not an empty list"),
    "null experiments": ("experiments:\n", "at least one, not null (nothing)"),
    "mapped experiments": ("experiments: {a: 1}\n", "must be a list of entries"),
    "an entry that is text": ("experiments: [a]\n", "s.yaml:1:15: experiments[0]: must be keys with values"),
    "empty factors": ("factors: {}\n", "factors: must be settings with a list each, such as `lora_rank: [4, 8]`, not an empty mapping"),
    "a factor without a list": ("factors: {lora_rank: 4}\n", "factors.lora_rank: must be a list of values, each a whole number from 1 to 4096, not 4"),
    "an empty factor": ("factors: {lora_rank: []}\n", "not an empty list"),
    "a factor value twice": ("factors: {lora_rank: [4, 4]}\n", "s.yaml:1:26: factors.lora_rank[1]: 4 appears twice"),
    "seeds as a factor": ("factors: {seeds: [0, 1]}\n", "is not a factor; it stands at the top of the file"),
    "a factor at the top too": ("lora_rank: 4\nfactors: {lora_rank: [4]}\n", "factors.lora_rank: is given at the top of the file too"),
    "billions of arms": (
        "factors: {" + ", ".join(f"{key}: {list(range(1, 100))}" for key in ("lora_rank", "lora_alpha", "max_steps")) + "}",
        "asks for 970299 experiments; a suite has at most 10000",
    ),
    "names that collide": ("experiments: [{name: a}, {name: A}]", "s.yaml:1:33: experiments[1].name: the name 'A' is taken by the entry in line 1"),
    "a hidden name": ("experiments: [{name: .a}]", "'.a' cannot be a folder's name"),
    "a name that climbs": ("experiments: [{name: ../a}]", "'../a' cannot be a folder's name"),
    "a name that ends with a dot": ("experiments: [{name: a.}]", "'a.' cannot be a folder's name"),
    "a device of Windows": ("experiments: [{name: nul.txt}]", "s.yaml:1:22: experiments[0].name: 'nul.txt' is the name of a device on Windows"),
    "a long name": (f"experiments: [{{name: {'a' * 101}}}]", "has 101 characters; a name has at most 100"),
    "seed twice": (f"seeds: [1, 2, 1]\n{ENTRY}", "s.yaml:1:8: seeds: the seed 1 appears twice"),
    "no seeds": (f"seeds: []\n{ENTRY}", "must be a list of one or more whole numbers from 0 to 4294967295"),
    "negative seed": (f"seeds: -1\n{ENTRY}", "or a whole number from 0 to 4294967295, not -1"),
    "a seed that is a word": (f"seeds: [true]\n{ENTRY}", "not [true]"),
    "unknown type": (f"experiment_type: rank_ablatoin\n{ENTRY}", "(did you mean rank_ablation?)"),
    "unlike any type": (f"experiment_type: x\n{ENTRY}", "must be one of rank_ablation, module_ablation, parameter_matched_modules, quantization_study, custom, or path/to/file.py:Class, not 'x'"),
    "type in a missing file": (f"experiment_type: my.py:Mine\n{ENTRY}", "experiment_type: there is no file 'my.py'"),
    "a race of one": ("racing: true\nseeds: [0, 1, 2]\nexperiments: [{lora_rank: 8}]", "s.yaml:1:9: racing: needs at least two arms"),
    "a race of few seeds at one rate": (
        "racing: true\nseeds: [0, 1, 2, 3, 4]\nexperiments: [{lora_rank: 8}, {lora_rank: 4}]",
        "racing: can only stop learning rates with 5 seeds, and there is one rate; give several rates, or 6 seeds",
    ),
    "a time budget without a search": (
        "time_budget_hours: 2\nexperiments: [{lora_rank: 8}, {lora_rank: 4}]",
        "s.yaml:1:20: time_budget_hours: needs learning_rate: auto for every arm",
    ),
    "a time budget for one arm": (
        "time_budget_hours: 2\nlearning_rate: auto\nexperiments: [{lora_rank: 8}]",
        "time_budget_hours: needs at least two arms to choose from",
    ),
    "a race of one seed": ("racing: true\nexperiments: [{lora_rank: 8}, {lora_rank: 4}]", "racing: needs at least 3 seeds to tell an arm from noise, not 1"),
    "a race of unlike seeds": (
        "racing: true\nexperiments: [{lora_rank: 8, seeds: [0, 1, 2]}, {lora_rank: 4, seeds: [0, 1, 3]}]",
        "racing: needs the same seeds for all arms",
    ),
    "a race over unlike distances": (
        "racing: true\nseeds: [0, 1, 2]\nexperiments: [{max_steps: 8}, {max_steps: 4}]",
        "racing: needs arms of the same max_steps: else they are not scored on the same rows after the same steps",
    ),
    "a race in epochs and in steps": (
        "racing: true\nseeds: [0, 1, 2]\nexperiments: [{max_steps: 8}, {num_train_epochs: 4}]",
        "racing: needs arms of the same num_train_epochs",
    ),
    "a race on unlike rows": (
        "racing: true\nseeds: [0, 1, 2]\nfactors: {max_train_samples: [8, 16]}", "racing: needs arms of the same max_train_samples",
    ),
    "a race by another metric": (
        f"racing: true\nseeds: [0, 1, 2]\nprimary_metric: exact_match\nlearning_rate: [1e-4, 2e-4]\n{ENTRY}",
        "racing: compares arms by held-out loss, so it could stop the arm of the best exact_match; remove it, or set primary_metric: loss",
    ),
    "a race with a search": (
        f"racing: true\nseeds: [0, 1, 2]\nlearning_rate: auto\n{ENTRY}", "racing: cannot be combined with learning_rate: auto",
    ),
    "rungs that fall": (f"racing: [0.5, 0.25]\n{ENTRY}", "s.yaml:1:9: racing: the shares of the steps must rise, as in [0.25, 0.5]"),
    "a rung at the end": (f"racing: [0.5, 1.0]\n{ENTRY}", "racing: must be true or false, or a list of one or more numbers greater than 0 and less than 1"),
    "too many rungs": (f"racing: [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]\n{ENTRY}", "racing: has 6 shares; more than 5 looks cost more than they save"),
    "racing in an entry": ("experiments: [{racing: true}]", "experiments[0].racing: stands at the top of the file, not here"),
    "missing data": (f"dataset_path: data/alpaca_250_sample.jsonl\n{ENTRY}", "make it: lorastudy prepare --dataset alpaca --num-samples 250"),
    "missing data like the specification's": (f"dataset_path: data/alpaca_x.jsonl\n{ENTRY}", "lorastudy prepare --dataset alpaca --num-samples 1000"),
    "misspelt data": (f"dataset_path: row.jsonl\n{ENTRY}", "there is no file 'row.jsonl' (paths start at the current folder) (did you mean rows.jsonl?)"),
    "a folder for data": (f"eval_dataset_path: .\n{ENTRY}", "'.' is a folder; name the file in it"),
    "data of no system": (f"dataset_path: {'a' * 5000}\n{ENTRY}", "there is no file"),
    "data with a NUL": (f'dataset_path: "data/\\0alpaca"\n{ENTRY}', "there is no file"),
    "lab without a name": (f"dataset_path: 'lab:'\n{ENTRY}", "the lab has no data set ''; it has lab:facts, "),
    "a misspelt set of the lab": (f"dataset_path: lab:fact\n{ENTRY}", "the lab has no data set 'fact' (did you mean lab:facts?); it has lab:facts, "),
    "missing model": (f"base_model: ./phi\n{ENTRY}", "s.yaml:1:13: base_model: there is no model folder './phi'"),
    "deep path for a model": (f"base_model: a/b/c\n{ENTRY}", "there is no model folder 'a/b/c'"),
    "an empty folder for a model": (f"base_model: empty\n{ENTRY}", "the folder 'empty' holds no config.json"),
    "a file for a model": (f"base_model: rows.jsonl\n{ENTRY}", "'rows.jsonl' is a file; name the folder"),
    "duplicate key": (f"lora_rank: 4\nlora_rank: 8\n{ENTRY}", "s.yaml:2:1: lora_rank: this key appears twice, first in line 1"),
    "tag": (f"lora_rank: !!int 4\n{ENTRY}", "s.yaml:1:12: the tag tag:yaml.org,2002:int is not allowed"),
    "python tag": (f"suite_name: !!python/object/apply:os.system [ls]\n{ENTRY}", "python/object/apply:os.system is not allowed"),
    "merge key": (f"<<: {{a: 1}}\n{ENTRY}", "YAML 1.2 has no merge keys"),
    "a key that is a number": (f"1: 2\n{ENTRY}", "s.yaml:1:1: a key must be text"),
    "a key that is a list": (f"? [a]\n: 2\n{ENTRY}", "s.yaml:1:3: a key must be text"),
    "syntax": ("a: [1\nb: 2\n", "s.yaml:2:"),
    "a tab": ("experiments:\n\t- a: 1\n", "s.yaml:2:1: is not YAML"),
    "a control character": ("a: \x07\n", "s.yaml:1:4: holds a character that YAML does not allow"),
    "an escape of no character": ('a: "\\UFFFFFFFF"\n', "is not YAML"),
    "empty": ("", "s.yaml:1:1: the file is empty"),
    "comment only": ("# nothing\n", "the file is empty"),
    "null": ("null\n", "must be keys with values"),
    "a list": ("- a\n", "s.yaml:1:1: must be keys with values"),
    "two documents": ("a: 1\n---\nb: 2\n", "s.yaml:2:1: a second document begins"),
    "deep": ("a: " + "[" * 30 + "]" * 30, "s.yaml:1:23: is nested more than 20 levels deep"),
    "alias without anchor": ("a: *x\n", "s.yaml:1:4: the alias *x has no anchor"),
    "alias within itself": ("a: &x [*x]\n", "the alias *x has no anchor &x that is complete above it"),
    "alias bomb": (
        "a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n"
        + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 10)),
        "holds more than 100000 values",
    ),
    "aliases that grow deep": (
        "a0: &a0 [1]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}]\n" for n in range(1, 30)),
        "is nested more than 20 levels deep",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_the_message_says_where_and_what(write: Write, folder: Path, case: str) -> None:
    (folder / "empty").mkdir()
    text, expected = BAD[case]
    with pytest.raises(SuiteFileError) as error:
        load_suite(write(text))
    assert expected in str(error.value)
    assert all(re.match(r"s\.yaml:\d+:\d+: ", problem) for problem in error.value.problems)


def test_all_problems_are_told_at_once_in_the_order_of_lines(write: Write) -> None:
    with pytest.raises(SuiteFileError) as error:
        load_suite(
            write(
                "lora_rnk: 4\nbase_model: ./no\ndataset_path: no.csv\nexperiment_type: x\nmax_steps: 0\n"
                "eval_dataset_path: lab:fact\n"
                "experiments:\n  - {name: a, lora_rank: 0}\n  - {name: a, lora_alpha: -1}\n"
            )
        )
    assert [":".join(problem.split(":")[1:3]) for problem in error.value.problems] == [
        "1:1", "2:13", "3:15", "4:18", "5:12", "6:20", "8:26", "9:12", "9:27",
    ]  # fmt: skip


def test_a_missing_path_is_told_once_and_only_when_it_is_used(write: Write, folder: Path) -> None:
    (folder / "configs").mkdir()
    (folder / "configs/default_config.yaml").write_text("dataset_path: gone.csv\n")
    assert load_suite(write(f"dataset_path: rows.jsonl\n{ENTRY}"))
    with pytest.raises(SuiteFileError) as error:
        load_suite(write("experiments: [{lora_rank: 4}, {lora_rank: 8}]"))
    (problem,) = error.value.problems
    assert problem.startswith("configs/default_config.yaml:1:15: dataset_path: there is no file 'gone.csv'")


def test_problems_of_the_defaults_are_told_with_those_of_the_suite(write: Write, folder: Path) -> None:
    (folder / "mine.yaml").write_text("suite_name: x\nlora_rank: 0\n")
    with pytest.raises(SuiteFileError) as error:
        load_suite(write("experiments: [{lora_alpha: 0}]"), defaults=Path("mine.yaml"))
    assert [problem.split(" ")[0] for problem in error.value.problems] == [
        "mine.yaml:1:1:",
        "mine.yaml:2:12:",
        "s.yaml:1:28:",
    ]


def test_a_missing_file_lists_its_neighbours(write: Write) -> None:
    write(ENTRY)
    for path, cause in ((Path("t.yaml"), "there is no such file"), (Path(), "is a folder, not a file")):
        with pytest.raises(SuiteFileError, match=f"{cause}; in . there are: s.yaml"):
            load_suite(path)


def test_a_file_that_is_not_text_or_too_large_is_refused(folder: Path) -> None:
    (folder / "latin.yaml").write_bytes(b"a: 1\nb: caf\xe9\n")
    with pytest.raises(SuiteFileError, match=r"latin.yaml:2:7: is not UTF-8 text"):
        load_suite(Path("latin.yaml"))
    (folder / "large.yaml").write_bytes(b"#" * 1_000_001)
    with pytest.raises(SuiteFileError, match=r"large.yaml:1:1: has more than 1000000 bytes"):
        load_suite(Path("large.yaml"))


def test_utf_16_is_told_by_its_name(folder: Path) -> None:
    (folder / "w.yaml").write_text(ENTRY, encoding="utf-16")
    with pytest.raises(SuiteFileError, match=r"w\.yaml:1:1: is UTF-16 text; save the file as UTF-8"):
        load_suite(Path("w.yaml"))


def test_a_device_without_end_is_not_read_to_its_end() -> None:
    with pytest.raises(SuiteFileError, match="/dev/zero:1:1: has more than 1000000 bytes"):
        load_suite(Path("/dev/zero"))


def test_a_hundred_problems_are_told_and_then_it_is_enough(write: Write) -> None:
    with pytest.raises(SuiteFileError) as error:
        load_suite(write("".join(f"key_{n}: 1\n" for n in range(300)) + ENTRY))
    assert len(error.value.problems) == 101
    assert error.value.problems[-1] == "s.yaml:101:1: and more problems from here on; fix those above first"


def test_a_line_of_a_message_is_short_whatever_the_file_holds(write: Write) -> None:
    with pytest.raises(SuiteFileError) as error:
        load_suite(write(f"? {'a' * 9000}\n: 1\n{ENTRY}"))
    assert all(len(problem) < 600 for problem in error.value.problems)
    assert "unknown key" in str(error.value)


def test_keys_at_their_defaults_change_nothing_and_may_stand_anywhere(write: Write) -> None:
    assert load_suite(write(f"quantization: bf16\nbnb_4bit_quant_type: nf4\nwarmup_ratio: 0.0\n{ENTRY}")).arms


def test_a_key_with_an_effect_in_one_arm_may_stand_above_all(write: Write) -> None:
    suite = load_suite(write("bnb_4bit_quant_type: fp4\nfactors: {quantization: [4bit, bf16]}\n"))
    assert len(suite.arms) == 2


def test_keys_that_every_entry_overrides_are_noted(write: Write) -> None:
    text = "lora_rank: 4\nmax_steps: 5\nlora_alpha: 8\nexperiments:\n  - {lora_rank: 8, num_train_epochs: 1}\n  - {lora_rank: 16, max_steps: 9}\n"
    why = "no arm uses this value; every entry gives its own"
    assert load_suite(write(text)).notes == (
        f"s.yaml:1:12: lora_rank: {why}",
        f"s.yaml:2:12: max_steps: {why}",
    )


def test_a_file_name_that_cannot_name_a_suite_asks_for_a_name(folder: Path) -> None:
    (folder / "my suite.yaml").write_text(ENTRY)
    with pytest.raises(
        SuiteFileError, match="suite_name: is not given, and the file's name cannot be used for it"
    ):
        load_suite(Path("my suite.yaml"))


def test_messages_are_printable_whatever_the_file_holds(write: Write) -> None:
    with pytest.raises(SuiteFileError) as error:
        load_suite(write(f'"k\\uD800\\ey": "\\a"\n{ENTRY}'))
    assert all(problem.isprintable() for problem in error.value.problems)


MUTABLE = """\
suite_name: good
experiment_type: rank_ablation
base_model: lab
dataset_path: rows.jsonl
learning_rate: [1e-4, 2e-4]
lora_alpha: 2r
target_modules: &modules [q_proj, "v_proj"]
seeds: [0, 1]
experiments:
  - name: small
    lora_rank: 8
  - {name: large, lora_rank: 64, max_steps: 10, target_modules: *modules}
"""


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_mutation_of_a_good_file_gives_another_error(write: Write, data: st.DataObject) -> None:
    text = MUTABLE
    pieces = st.text(string.printable + "é\u2028\x00\ud800", max_size=4).map(
        lambda s: s.replace("\ud800", '"\\uD800"')
    )
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(text)))
        end = data.draw(st.integers(start, min(len(text), start + 12)))
        text = (
            text[:start]
            + data.draw(pieces | st.sampled_from(["null", "-1", "[", "{}", "&a ", "*modules", "!!x "]))
            + text[end:]
        )
    path = write(text)
    problems: tuple[str, ...] = ()
    try:
        assert load_suite(path).arms
    except SuiteFileError as error:
        problems = error.problems or ("no problem told",)
    assert all(re.match(r"s\.yaml:\d+:\d+: ", problem) for problem in problems)
