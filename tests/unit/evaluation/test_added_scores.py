"""Added metrics on real rows and a model of bytes: against the model's own likelihoods, one text at a time."""

import json
import math
from pathlib import Path

import pytest
import torch

import tiny
from lorastudy.data.load import load_examples
from lorastudy.engine.loading import load_base
from lorastudy.errors import StudyError
from lorastudy.evaluation.added_scores import ScoredSplit, added_scores
from lorastudy.protocol.scoring import Scoring, StoredAdapter
from lorastudy.suite.metrics import BUILT_IN
from lorastudy.suite.settings import Settings

pytestmark = pytest.mark.usefixtures("one_thread")

CHOICES = ["red", "dark blue", "Grün"]
ROWS = [
    {"prompt": "The sky is ", "completion": "dark blue", "choices": CHOICES},
    {"prompt": "Grass is ", "completion": "Grün", "choices": CHOICES},
    {"prompt": "Snow is ", "completion": "white", "choices": CHOICES},
    {"prompt": "Coal is ", "completion": "A", "choices": ["black", "white"]},
]
BLANK = [
    {"prompt": "Tar is ", "completion": "black", "choices": ["black", ""]},
    {"prompt": "Milk is ", "completion": "white", "choices": [" ", "white"]},
]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    tiny.save_byte_model(tmp_path / "bytes")
    return Settings(base_model=str(tmp_path / "bytes"), quantization="fp32", prompt_format="plain")


@pytest.fixture
def base(settings):
    return load_base(settings, device=tiny.CPU)


def split_of(rows, settings, base, folder: Path) -> ScoredSplit:
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    _, examples = load_examples(str(file))
    return ScoredSplit.of("eval", examples, settings=settings, base=base)


@pytest.fixture
def split(settings, base, tmp_path):
    return split_of(ROWS, settings, base, tmp_path)


def scores_of(base, split, settings, *names):
    arm = tiny.make_arm(tiny.targets(base, "q"), name="a")
    scoring = Scoring(
        metrics=tuple(BUILT_IN[name] for name in names),
        adapters={"a": StoredAdapter(attempt=3, folder="adapters/a")},
    )
    with tiny.opened(tiny.ENGINES["packed"](base, [arm])) as engine:
        return list(added_scores(engine, split, scoring=scoring, settings=settings, base=base))


@torch.no_grad()
def nats(base, prompt: str, answer: str) -> list[float]:
    """Of each token of the answer and of the end after it, by one forward pass of the model alone."""
    before, after = (base.tokenizer(text, add_special_tokens=False)["input_ids"] for text in (prompt, answer))
    ids = [*before, *after, base.eos_token_id]
    logprobs = base.model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return [-logprobs[place - 1, ids[place]].item() for place in range(len(before), len(ids))]


def prompts(split) -> list[str]:
    return [row.prompt_text for row in split.tokens.rows]


def test_bits_per_byte_are_the_models_own_nats(base, split, settings):
    (score,) = scores_of(base, split, settings, "bits_per_byte")
    assert (score.experiment_id, score.attempt, score.metric) == ("a", 3, "bits_per_byte")
    answers = [row["completion"] for row in ROWS]
    sums = [sum(nats(base, *pair)) for pair in zip(prompts(split), answers, strict=True)]
    num_bytes = [len(answer.encode()) for answer in answers]
    assert num_bytes == [9, 5, 5, 1]  # an umlaut has two
    assert score.weights == tuple(num_bytes)
    expected = [total / math.log(2) / length for total, length in zip(sums, num_bytes, strict=True)]
    assert score.items == pytest.approx(expected, rel=1e-5)
    assert score.value == pytest.approx(sum(sums) / math.log(2) / sum(num_bytes), rel=1e-5)


def test_the_choice_is_the_likeliest_by_byte_and_the_end_does_not_count(base, split, settings):
    (score,) = scores_of(base, split, settings, "choice_accuracy")
    expected = []
    for number, candidates in ((0, CHOICES), (1, CHOICES), (3, ["A", "B"])):
        by_byte = [
            sum(nats(base, prompts(split)[number], choice)[:-1]) / len(choice.encode())
            for choice in candidates
        ]
        expected.append(float(candidates[by_byte.index(min(by_byte))] == ROWS[number]["completion"]))
    assert score.items == (*expected[:2], None, expected[2])
    assert score.value == pytest.approx(sum(expected) / 3)
    assert [(row.where.rpartition("/")[2], row.message) for row in score.failed_rows] == [
        ("rows.jsonl:3", "its answer is none of its choices"),
    ]


def test_a_blank_choice_fails_its_row_and_no_other(base, settings, tmp_path):
    (score,) = scores_of(
        base, split_of([*ROWS[:1], *BLANK], settings, base, tmp_path), settings, "choice_accuracy"
    )
    assert score.items[0] in (0.0, 1.0)
    assert score.items[1:] == (None, None)
    assert {row.message for row in score.failed_rows} == {"its answer or a choice is empty"}


def test_without_a_row_to_ask_the_user_is_told(base, split, settings):
    asks_nothing = settings.model_copy(update={"max_new_tokens": 10_000})
    with pytest.raises(StudyError, match="token_f1: no eval row has a prompt and room for an answer"):
        scores_of(base, split, asks_nothing, "token_f1")
