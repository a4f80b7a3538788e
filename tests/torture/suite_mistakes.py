"""A grammar of plausible mistakes in a suite file: what people type, paste, save and generate.

Each mistake takes a text and a source of randomness and gives another text, or bytes where the mistake is one of
encoding. `mistaken` makes one to four of them in one file.
"""

import random
import re
import string
from collections.abc import Callable

LISTED = """\
suite_name: good
description: Ranks on rows of one's own
experiment_type: rank_ablation
base_model: lab
dataset_path: rows.jsonl
learning_rate: [1e-4, 2e-4]
lora_alpha: 2r
target_modules: &modules [q_proj, "v_proj"]
quantization: fp32
max_steps: 20
seeds: [0, 1]
experiments:
  - name: small
    lora_rank: 8
  - {name: large, lora_rank: 64, max_steps: 10, target_modules: *modules}
  - name: sloped
    lora_rank: 16
    lr_scheduler_type: cosine
    warmup_ratio: 0.05
"""

CROSSED = """\
# Modules against precision
suite_name: crossed
experiment_type: module_ablation
base_model: lab
dataset_path: 'rows.jsonl'
eval_fraction: 0.2
lora_rank: 16
lora_alpha: 32
lora_dropout: 0.05
num_train_epochs: 2
use_rslora: false
bnb_4bit_quant_type: fp4
max_generation_samples: 8
max_new_tokens: 16
exact_match_pattern: '#### (.+)'
seeds: 3
factors:
  target_modules: [q, v, [q_proj, down_proj]]
  quantization:
    - 4bit
    - bf16
"""

FLOW = """\
{suite_name: flow, base_model: lab, dataset_path: rows.jsonl, forgetting_dataset_path: rows.jsonl,
 weight_decay: 1.0e-2, max_grad_norm: 0.5, layers_to_transform: [0, 1], data_seed: 7,
 experiments: [{lora_rank: 4}, {lora_rank: 8, gradient_checkpointing: true, engine: packed}]}
"""

GOOD = (LISTED, CROSSED, FLOW)

#: What is typed in a value's place.
VALUES = (
    "off", "on", "yes", "no", "y", "n", "True", "FALSE", "null", "~", "", '""', "''", "none", "None", "auto",
    "0", "-1", "1", "3.0", "3.5", "1e-4", "1E-4", "'1e-4'", "1e999", "-.inf", ".inf", ".nan", "nan", "0x10", "0o17",
    "017", "1_000", "1,000", "1:30", "2024-01-01", "9" * 30, "9" * 5000, "4 bit", "4bits", "16GB", "10%", "2k", "2e-4,",
    "3 seeds", "[1, 2]", "[]", "[[]]", "{}", "{a: 1}", "[4, 4]", "[true]", "[null]", "[1e-4, off]", "text", "'16'",
    '"r"', "2r", "r2", "0r", "-2r", "!!int 4", "!!str 4", "!!python/object/apply:os.system ['touch canary']",
    "!!python/name:os.system", "!!binary aGk=", "!custom 1", "&a 5", "*a", "*modules", "|\n  many\n  lines", ">-\n  folded",
    '"\\0"', '"\\uD800"', '"\\x1b[31m"', '"\\UFFFFFFFF"', "\x07", "\x1b[2J", "\N{GRINNING FACE}", "\u202egnp", "caf\u00e9", "@x", "`x`", "%x",
    "? a", "- 1", "a: b", "a # b", "#only", "../up", "/etc/passwd", "./none", "~/x", "nobody/nothing", "CON", "a" * 300, "<<",
)  # fmt: skip

#: Keys of other tools, and keys of nobody.
FOREIGN = (
    "lr", "r", "alpha", "lora_r", "epochs", "batch_size", "model", "dataset", "seed", "load_in_4bit", "lora_target_modules",
    "cutoff_len", "bf16", "optim", "output_dir", "gpu", "x", "1", "null", "true", "[a]", "{b: 1}", "<<", "''", "__class__",
    "model_config", "model_fields", "copy", "lora_alpha_value", "trainer", "\u043bora_rank", "'lora rank'",
)  # fmt: skip

_LOOK_ALIKES = {
    "a": "\u0430",
    "o": "\u043e",
    "e": "\u0435",
    "_": "\uff3f",
    "l": "\u0406",
    "i": "\u0456",
    "s": "\u0455",
}
_KEY = re.compile(r"(?<![\w\"'])[A-Za-z_][\w]*(?=:(?:\s|$))")
_PAIR = re.compile(r"(?P<key>[A-Za-z_]\w*):[ ]+(?P<value>[^\n,{}]+|\[[^\]\n]*\])")

Draw = random.Random
Mistake = Callable[[str, Draw], str]


def mistaken(draw: Draw) -> bytes:
    """A good suite file with one to four mistakes in it, as it lies on the disk."""
    text = draw.choice(GOOD)
    for _ in range(draw.choice((1, 1, 1, 2, 2, 3, 4))):
        text = draw.choice(MISTAKES)(text, draw)
    if draw.random() < 0.08:
        return draw.choice(ENCODINGS)(text, draw)
    return text.encode("utf-8", "surrogatepass")


def misspelt_key(text: str, draw: Draw) -> str:
    """A key as a finger slips, or as another convention writes it."""
    match = _picked(_KEY, text, draw)
    if match is None:
        return text
    key, at = match[0], draw.randrange(len(match[0]))
    other = draw.choice(
        (
            key[:at] + key[at + 1 :],
            key[:at] + key[at] + key[at:],
            key[:at] + draw.choice(string.ascii_lowercase) + key[at + 1 :],
            key.upper(),
            key.title(),
            key.replace("_", "-"),
            key.replace("_", ""),
            key.replace("_", " "),
            re.sub("_(.)", lambda m: m[1].upper(), key),
            key + "s",
            key + " ",
            f'"{key}"',
            f'"{key} "',
            key + "\u200b",
            "".join(_LOOK_ALIKES.get(c, c) if i == at else c for i, c in enumerate(key)),
            f"? {key}\n",
        )
    )
    return _replaced(text, match, other)


def foreign_key(text: str, draw: Draw) -> str:
    """A key that another tool has."""
    match = _picked(_KEY, text, draw)
    return text if match is None else _replaced(text, match, draw.choice(FOREIGN))


def wrong_value(text: str, draw: Draw) -> str:
    """A value of another kind, out of range, with a unit, or in a notation that means something else."""
    match = _picked(_PAIR, text, draw)
    return text if match is None else _replaced(text, match, f"{match['key']}: {draw.choice(VALUES)}")


def added_line(text: str, draw: Draw) -> str:
    """A further key, known or not, at a place that is right or not."""
    known = (
        "bnb_4bit_quant_type: fp4", "warmup_ratio: 0.1", "lr_scheduler_type: constant", "max_new_tokens: 5",
        "eval_dataset_path: rows.jsonl", "max_generation_samples: 0", "lora_rank: 8", "name: one", "max_steps: 5",
        "num_train_epochs: 1", "trust_remote_code: yes", "suite_name: x", "seeds: [4]", "engine: reference",
    )  # fmt: skip
    line = draw.choice((*known, f"{draw.choice(FOREIGN)}: {draw.choice(VALUES)}"))
    return _with_line(text, " " * draw.choice((0, 0, 2, 4, 4, 6)) + line, draw)


def other_indentation(text: str, draw: Draw) -> str:
    """A line moved to another level, by spaces, by a tab, by a space that is none."""
    lines = text.split("\n")
    at = draw.randrange(len(lines))
    stripped = lines[at].lstrip()
    lines[at] = draw.choice(("", " ", "  ", "   ", "    ", "      ", "\t", "\u00a0\u00a0", "  \t")) + stripped
    return "\n".join(lines)


def line_twice(text: str, draw: Draw) -> str:
    """A line pasted a second time, perhaps elsewhere."""
    return _with_line(text, draw.choice(text.split("\n")), draw)


def line_lost(text: str, draw: Draw) -> str:
    """A line deleted."""
    lines = text.split("\n")
    del lines[draw.randrange(len(lines))]
    return "\n".join(lines)


def lines_swapped(text: str, draw: Draw) -> str:
    """Two lines in the other order."""
    lines = text.split("\n")
    one, other = (draw.randrange(len(lines)) for _ in range(2))
    lines[one], lines[other] = lines[other], lines[one]
    return "\n".join(lines)


def nested_wrongly(text: str, draw: Draw) -> str:
    """Keys put under a heading that other tools have."""
    lines = text.split("\n")
    start = draw.randrange(len(lines))
    end = min(len(lines), start + draw.randint(1, 4))
    heading = draw.choice(("training", "lora", "model", "data", "experiments", "factors", "defaults"))
    return "\n".join(
        [*lines[:start], f"{heading}:", *("  " + line for line in lines[start:end]), *lines[end:]]
    )


def punctuation(text: str, draw: Draw) -> str:
    """A bracket, quote, colon, comma or dash too many, too few, or of typesetters."""
    marks = [i for i, c in enumerate(text) if c in "[]{}:,-\"'&*#"]
    if not marks:
        return text
    at = draw.choice(marks)
    other = draw.choice(
        (
            "",
            ":",
            "::",
            " : ",
            "=",
            "\uff1a",
            "[",
            "]",
            "{",
            "}",
            ",",
            '"',
            "'",
            "\u201c",
            "- ",
            "\u2013 ",
            "#",
            "|",
            "\t",
        )
    )
    return text[:at] + other + text[at + 1 :]


def yaml_feature(text: str, draw: Draw) -> str:
    """Tags, anchors, merges, directives, documents, bombs: what YAML can do and a suite file does not."""
    bomb = "a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
        f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 9)
    )
    before = draw.choice(
        (
            "---\n", "%YAML 1.1\n---\n", "%YAML 2.0\n---\n", "%TAG ! tag:x.org,2000:\n---\n", "...\n", "--- !!map\n",
            "base: &base {lora_rank: 4}\n<<: *base\n", "&root\n", "!!python/object:os.X\n", bomb, "\ufeff", "\ufeff\ufeff",
            "x: " + "[" * 40 + "]" * 40 + "\n", "".join("  " * n + "a:\n" for n in range(60)), "# \x00\n", "\u2028", "? ",
        )
    )  # fmt: skip
    after = draw.choice(
        ("", "", "---\nsuite_name: two\n", "...\nmore: 1\n", "\n- item\n", "<<: {lora_rank: 4}\n")
    )
    return before + text + after if draw.random() < 0.7 else text + after


def slip(text: str, draw: Draw) -> str:
    """Any few characters replaced by any others."""
    start = draw.randrange(len(text) + 1)
    end = min(len(text), start + draw.randrange(8))
    pool = string.printable + "\u00e9\u2028\x00\x85\ufeff"
    return text[:start] + "".join(draw.choices(pool, k=draw.randrange(4))) + text[end:]


def cut_short(text: str, draw: Draw) -> str:
    """Only the beginning of the file."""
    return text[: draw.randrange(len(text) + 1)]


def many_lines(text: str, draw: Draw) -> str:
    """What a script that went wrong writes: a line hundreds of times, or keys by number."""
    number = draw.choice((150, 400))
    line = draw.choice(text.split("\n"))
    lines = [line] * number if draw.random() < 0.5 else [f"key_{n}: {n}" for n in range(number)]
    return text + "\n".join(lines) + "\n"


MISTAKES: tuple[Mistake, ...] = (
    *(misspelt_key,) * 4, *(wrong_value,) * 6, *(added_line,) * 3, *(foreign_key,) * 2, other_indentation, other_indentation,
    line_twice, line_lost, lines_swapped, nested_wrongly, punctuation, punctuation, yaml_feature, slip, cut_short, many_lines,
)  # fmt: skip


def _saved_as(codec: str) -> Callable[[str, Draw], bytes]:
    return lambda text, draw: text.encode(codec, "replace")


def _with_bytes(text: str, draw: Draw) -> bytes:
    """Bytes that are no text, somewhere."""
    content = text.encode("utf-8", "replace")
    at = draw.randrange(len(content) + 1)
    return (
        content[:at]
        + draw.choice((b"\x00", b"\xff", b"\xc3", b"\xed\xa0\x80", b"\x1b[31m", b"\xf8\x88"))
        + content[at:]
    )


ENCODINGS: tuple[Callable[[str, Draw], bytes], ...] = (
    *(_saved_as(codec) for codec in ("utf-16", "utf-16-le", "utf-32", "utf-8-sig", "latin-1", "cp037")),
    _with_bytes,
    _with_bytes,
    lambda text, draw: text.replace("\n", "\r\n").encode("utf-8", "replace"),
    lambda text, draw: text.replace("\n", "\r").encode("utf-8", "replace"),
    lambda text, draw: ("# caf\u00e9\n" + text).encode("latin-1", "replace"),
)  # fmt: skip


def _picked(pattern: re.Pattern[str], text: str, draw: Draw) -> re.Match[str] | None:
    found = list(pattern.finditer(text))
    return draw.choice(found) if found else None


def _replaced(text: str, match: re.Match[str], other: str) -> str:
    return text[: match.start()] + other + text[match.end() :]


def _with_line(text: str, line: str, draw: Draw) -> str:
    lines = text.split("\n")
    lines.insert(draw.randrange(len(lines) + 1), line)
    return "\n".join(lines)
