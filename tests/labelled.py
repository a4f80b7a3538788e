"""Arms on 400 labelled rows whose labels have unequal frequencies: what tests of analysis and report share.

A label is one token and its end another, and the end is certain; so an arm that gives the right label the probability p
has -log(p) / 2 nats per token on that row.
"""

import math
import random
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from lorastudy.data.answers import trivial_scores
from lorastudy.data.tokenise import TokenRow
from lorastudy.protocol.records import EXACT_MATCH_VERSION, LOSS_VERSION, ArmProfile, Environment
from lorastudy.stats.twoway import ItemScores, ItemTable
from lorastudy.store.views import ExperimentResult, ScoreValue, StatedQuestion, SuiteSummary
from lorastudy.suite.question import Question
from lorastudy.suite.settings import Settings

LABELS = ("good", "bad", "so")
NUM_ROWS, NUM_SEEDS, TUNING_SEED = 400, 6, 100
#: Of a base model that never saw the format.
BASE_LOSS = 10.6
ENVIRONMENT = Environment(
    python="1", torch="1", transformers="1", peft="1", bitsandbytes="1", lorastudy="1", device="cpu",
    device_name="a CPU", num_threads=1,
)  # fmt: skip

#: From the right label, the seed and a source of chance: the probability that an arm gives it, and the label that it says.
Guess = Callable[[int, int, random.Random], tuple[float, int]]


def drawn(seed: int) -> list[int]:
    """400 labels, half of them `good`."""
    return random.Random(seed).choices(range(3), weights=[5, 3, 2], k=NUM_ROWS)


TRAIN, HELD_OUT = drawn(0), drawn(1)


def _rows(labels: Sequence[int]) -> Any:
    rows = [
        TokenRow(
            input_ids=(9, 10 + label, 1), labels=(-100, 10 + label, 1), prompt_ids=(9,), prompt_text="text",
            reference=LABELS[label],
        )
        for label in labels
    ]  # fmt: skip
    tokens = SimpleNamespace(rows=rows)
    tokens.counted = tokens
    return tokens


TRIVIAL = tuple(
    trivial_scores(
        {"train": _rows(TRAIN), "eval": _rows(HELD_OUT)}, Settings(max_generation_samples=NUM_ROWS),
        vocab_size=1000, num_positions=None,
    )
)  # fmt: skip


def same_word(label: int, seed: int, draw: random.Random) -> tuple[float, int]:
    """`good` to every row, far too sure of it: worse than the frequencies, whatever the row."""
    sure = 0.88 + 0.002 * seed + 0.001 * draw.random()
    return (sure if label == 0 else (1 - sure) / 2), 0


def sharper(label: int, seed: int, draw: random.Random) -> tuple[float, int]:
    """As `same_word`, and a little less wrong: shown to be better than that, and no better than guessing."""
    sure = 0.80 + 0.002 * seed + 0.001 * draw.random()
    return (sure if label == 0 else (1 - sure) / 2), 0


def learnt(label: int, seed: int, draw: random.Random) -> tuple[float, int]:
    """The right label on nine rows of ten."""
    right = draw.random() < 0.9
    return (0.85 + 0.002 * seed if right else 0.07), label if right else 0


def results_of(
    arms: Mapping[int, Guess], *, base_loss: float = BASE_LOSS, **changes: Any
) -> tuple[list[ExperimentResult], ItemTable]:
    """A rank ablation by rank, each at a rate that was looked for, with its scores item by item."""
    results, items = [], {}
    for rank, guess in arms.items():
        for seed in range(NUM_SEEDS):
            draw = random.Random(f"{rank}/{seed}")
            said = [guess(label, seed, draw) for label in HELD_OUT]
            scores = {
                ("eval", "loss"): tuple(-math.log(p) / 2 for p, _ in said),
                ("eval", "exact_match"): tuple(
                    float(one == label) for (_, one), label in zip(said, HELD_OUT, strict=True)
                ),
                ("eval_before", "loss"): (base_loss,) * NUM_ROWS,
                ("eval", "same_answer"): _same_answer([one for _, one in said]),
            }
            made = _result(rank, 2e-4, seed, scores=scores, **changes)
            results.append(made)
            for (split, metric), values in scores.items():
                weights = (2,) * NUM_ROWS if metric == "loss" else None
                items[made.experiment_id, split, metric] = ItemScores(values=values, weights=weights)
        for factor, worse in ((1 / 3, 0.5), (1.0, 0.0), (3.0, 0.5)):
            tried = {("eval", "loss"): (1.0 + worse,), ("eval", "exact_match"): (0.6 - worse,)}
            results.append(_result(rank, 2e-4 * factor, TUNING_SEED, scores=tried, **changes))
    return results, items


def _same_answer(said: Sequence[int]) -> tuple[float, ...]:
    commonest = max(said, key=said.count)
    return tuple(float(one == commonest) for one in said)


def _result(
    rank: int, rate: float, seed: int, *, scores: Mapping[tuple[str, str], tuple[float, ...]], **changes: Any
) -> ExperimentResult:
    arm = f"r{rank}" if rate == 2e-4 else f"r{rank}_lr{rate:g}"
    values = {
        key: ScoreValue(
            value=sum(items) / len(items), unit="nats/token" if key[1] == "loss" else "", num_items=NUM_ROWS,
            version=LOSS_VERSION if key[1] == "loss" else EXACT_MATCH_VERSION,
        )
        for key, items in scores.items()
    }  # fmt: skip
    profile = ArmProfile(
        experiment_id=f"{arm}/{seed}", num_trainable_parameters=rank, num_total_parameters=100 + rank, adapter_bytes=rank,
        memory_kind="cpu_tensors", peak_memory_bytes=100 + rank, step_seconds=None, tokens_per_second=None,
    )  # fmt: skip
    made = {
        "experiment_id": f"{arm}/{seed}", "suite_name": "labels", "name": f"{arm}_{seed}", "arm": arm,
        "experiment_type": "rank_ablation", "seed": seed, "status": "completed", "scores": values, "profile": profile,
        "settings": Settings(lora_rank=rank, lora_alpha="2r", learning_rate=rate).model_dump(mode="json"),
        "environment": ENVIRONMENT, "trivial": TRIVIAL, "sources": {"base_model": "base", "dataset": "data"},
    }  # fmt: skip
    return ExperimentResult(**{**made, **changes})


def tracker_of(results: Sequence[ExperimentResult], items: ItemTable, *, question: Question) -> Any:
    """The reads of a store that report and `recommend` make."""
    stated = StatedQuestion(question=question, stated_at="2026-01-02T12:00:00+00:00", num_completed=0)
    suite = SuiteSummary(
        suite_name="labels", description="", created_at="", num_experiments=len(results), questions=(stated,)
    )

    def all_items(ids: Sequence[str], *, split: str, metric: str) -> dict[str, Any]:
        known = {name: items.get((name, split, metric)) for name in ids}
        return {name: (one.values, one.weights) for name, one in known.items() if one is not None}

    return SimpleNamespace(
        get_all_experiments=lambda suite_name=None: list(results),
        get_suites=lambda: [suite],
        get_all_items=all_items,
        get_imported=lambda suite_name=None: [],
        get_designs=dict,
        get_decisions=lambda suite_name: (),
    )
