"""What is counted of the rows is the same for every pack; a long file is trained on as if all of it were read."""

import gzip
import json
import random
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, strategies
from hypothesis import settings as hypothesis_settings

from lorastudy.data import near_copies as near_copies_module
from lorastudy.data import token_sets as module
from lorastudy.data.answers import trivial_scores
from lorastudy.data.batches import micro_batches, rows_in_order
from lorastudy.data.load import train_and_eval
from lorastudy.data.sources import RowSource, dataset_fingerprint, read_rows, watched
from lorastudy.data.token_sets import Reach, token_sets
from lorastudy.data.tokenise import IGNORED
from lorastudy.engine.batch import plan_batches
from lorastudy.lint.case import ArmFacts, after_reading
from lorastudy.protocol.records import RowsRead
from lorastudy.suite.settings import Settings


@pytest.fixture
def many(write):
    """Four hundred rows, of which about a third have prompts too long for 40 tokens."""
    draw = random.Random(0)
    return write(
        "rows.jsonl",
        [{"prompt": f"{i}" * draw.randint(1, 18), "completion": f"answer {i}"} for i in range(400)],
    )


def trained(study, settings, *, letters, reach, data_seed, steps):
    """The token rows of each step, as `plan_batches` lays them out."""
    tokens = token_sets(study, settings, tokenizer=letters(), reach=reach)["train"]
    order = rows_in_order(
        tokens.num_given,
        data_seed=data_seed,
        num_rows_needed=steps * 4,
        refused=tokens.refused,
        places=tokens.places,
    )
    plan = micro_batches(order, batch_size=4, accumulation=1)
    return tokens, [[tokens.rows[number] for number in batch] for (batch,) in plan]


@pytest.mark.parametrize("data_seed", range(4))
def test_the_rows_that_are_reached_are_trained_as_if_all_were_read(many, letters, monkeypatch, data_seed):
    monkeypatch.setattr(module, "MIN_ROWS", 1)
    monkeypatch.setattr(module, "COUNTED_ROWS", 30)
    settings = Settings(dataset_path=many, max_steps=6, max_seq_length=40, per_device_train_batch_size=4)
    study = train_and_eval(settings)
    reach = Reach.of(settings, max_steps=[2, 6], data_seeds=[data_seed])
    whole, expected = trained(study, settings, letters=letters, reach=None, data_seed=data_seed, steps=6)
    part, found = trained(study, settings, letters=letters, reach=reach, data_seed=data_seed, steps=6)
    assert found == expected
    assert len(whole.refused) > 50
    num_read = len(part.rows) + len(part.refused)
    assert 24 <= num_read < 120
    assert part.summary == whole.summary
    assert part.summary.num_unread_rows == len(study.train) - 30


@pytest.mark.parametrize("counted_rows", [30, 10_000])
@given(
    max_steps=strategies.lists(strategies.one_of(strategies.none(), strategies.integers(1, 200)), min_size=1),
    data_seeds=strategies.sets(strategies.integers(0, 5), min_size=1),
)
@hypothesis_settings(
    deadline=None, max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_counts_and_guesses_do_not_depend_on_the_arms_or_steps_of_a_pack(
    many, letters, monkeypatch, counted_rows, max_steps, data_seeds
):
    """A pack of any arms, a plan and a check tell the same about the rows."""
    monkeypatch.setattr(module, "COUNTED_ROWS", counted_rows)
    monkeypatch.setattr(module, "MIN_ROWS", 1)
    settings = Settings(dataset_path=many, max_seq_length=40, per_device_train_batch_size=1)
    study, tokenizer = train_and_eval(settings), letters()

    def told(reach):
        sets = token_sets(study, settings, tokenizer=tokenizer, reach=reach)
        guesses = trivial_scores(sets, settings, vocab_size=128, num_positions=None)
        train = sets["train"].counted
        return {split: tokens.summary for split, tokens in sets.items()}, list(guesses), train.whole_lengths

    reach = Reach.of(settings, max_steps=max_steps, data_seeds=sorted(data_seeds))
    assert told(reach) == told(None)


def test_rows_that_repeat_are_counted_among_the_training_rows(write, letters):
    """Of 60 rows, 20 repeat one; held-out rows and their repetitions are not training rows."""
    rows = [{"prompt": f"q{i % 40}", "completion": "a"} for i in range(60)]
    settings = Settings(dataset_path=write("a.jsonl", rows), eval_fraction=0.3)
    sets = token_sets(train_and_eval(settings), settings, tokenizer=letters(), reach=None)
    trained = [row.prompt_text for row in sets["train"].rows]
    assert 0 < len(trained) - len(set(trained)) < 20
    assert sets["train"].summary.num_duplicate_rows == len(trained) - len(set(trained))


def test_a_worker_reads_the_training_rows_once_for_all_its_packs(many, letters):
    settings = Settings(dataset_path=many, max_seq_length=40)
    study, tokenizer = train_and_eval(settings), letters()
    first, again = (
        token_sets(study, settings, tokenizer=tokenizer, reach=None)["train"].rows for _ in range(2)
    )
    assert first is again
    shorter = settings.model_copy(update={"max_seq_length": 30})
    other = token_sets(study, shorter, tokenizer=tokenizer, reach=None)["train"].rows
    assert max(other.lengths()) <= 30 < max(first.lengths())


@pytest.mark.parametrize("data_seed", range(4))
def test_pieces_of_texts_that_are_reached_are_trained_as_if_all_texts_were_read(
    write, letters, monkeypatch, data_seed
):
    monkeypatch.setattr(module, "MIN_ROWS", 1)
    monkeypatch.setattr(module, "COUNTED_ROWS", 20)
    draw = random.Random(0)
    path = write("texts.jsonl", [{"text": f"{i:03}" * draw.randint(1, 40)} for i in range(300)])
    settings = Settings(dataset_path=path, max_steps=12, max_seq_length=20, per_device_train_batch_size=4)
    study = train_and_eval(settings)
    reach = Reach.of(settings, max_steps=[12], data_seeds=[data_seed])
    whole, expected = trained(study, settings, letters=letters, reach=None, data_seed=data_seed, steps=12)
    part, found = trained(study, settings, letters=letters, reach=reach, data_seed=data_seed, steps=12)
    assert found == expected
    assert len(set(part.places)) == 48
    assert len(whole.rows) > 2 * whole.num_given == 2 * len(study.train)
    assert len({row.input_ids[:1] for batch in found for row in batch}) > 1


def test_all_pieces_of_a_text_are_on_one_side_and_one_group(write, letters):
    texts = [f"{i:03}" * 30 for i in range(100)]
    path = write("texts.jsonl", [{"text": text} for text in texts])
    settings = Settings(dataset_path=path, max_seq_length=20, eval_fraction=0.2)
    sets = token_sets(train_and_eval(settings), settings, tokenizer=letters(), reach=None)
    sides = [
        {"".join(map(chr, row.input_ids))[:3] for row in sets[split].rows[::5]} for split in ("train", "eval")
    ]
    assert not sides[0] & sides[1]
    assert len(sides[0]) + len(sides[1]) == 100
    held_out = sets["eval"]
    assert held_out.summary.groups == tuple(text for text in range(len(sides[1])) for _ in range(5))
    assert held_out.summary.num_truncated_rows == held_out.summary.num_refused_rows == 0
    assert held_out.summary.num_tokens == len(sides[1]) * 91  # of each text 90 letters and EOS


def test_texts_are_counted_beside_their_rows(write, letters):
    """One of ten texts is trained on as well, and is 46 rows of at most 20 tokens; each other is one row."""
    letters_of = [chr(97 + number) for number in range(10)]
    held_out = [{"text": letters_of[0] * 900}, *({"text": letter * 9} for letter in letters_of[1:])]
    trained = [{"text": letters_of[0] * 900}, *({"text": f"{number}" * 60} for number in range(300, 303))]
    settings = Settings(
        dataset_path=write("a.jsonl", trained),
        eval_dataset_path=write("b.jsonl", held_out),
        max_seq_length=20,
    )
    sets = token_sets(train_and_eval(settings), settings, tokenizer=letters(), reach=None)
    summary = sets["eval"].summary
    assert (summary.num_rows, summary.num_texts) == (46 + 9, 10)  # 901 tokens with EOS are 46 rows of 20
    assert (summary.num_leaked_rows, summary.num_compared_rows) == (1, 10)
    assert (sets["train"].summary.num_rows, sets["train"].summary.num_texts) == (46 + 3 * 10, 4)
    facts = after_reading(
        ArmFacts(), settings, rows=[RowsRead(summary=tokens.summary) for tokens in sets.values()]
    )
    assert (facts.num_test_rows, facts.num_leaked_rows) == (10, 1)


def test_trainings_by_epochs_reach_all_rows(many):
    assert Reach.of(Settings(dataset_path=many), max_steps=[3, None], data_seeds=[0]) is None


def test_a_pass_picks_rows_without_reading_on(many):
    source, seen = RowSource(many), []
    everything = read_rows(many)
    assert list(source) == list(source) == everything
    assert list(source.picked([0, 3, 399])) == [everything[number] for number in (0, 3, 399)]
    with watched(seen.append):
        list(source)
    assert seen[-1] is None


def test_files_that_fit_a_pattern_and_packed_files_are_read_alike(tmp_path, write):
    rows = [{"prompt": f"q{i}", "completion": f"a{i}"} for i in range(9)]
    whole = write("whole.jsonl", rows)
    for part in range(3):
        write(f"part-{part}.jsonl", rows[3 * part : 3 * part + 3])
    packed = tmp_path / "whole.csv.gz"
    with gzip.open(packed, "wt", encoding="utf-8") as file:
        file.write("prompt,completion\n" + "".join(f"{row['prompt']},{row['completion']}\n" for row in rows))
    pattern = str(tmp_path / "part-*.jsonl")
    for name in (whole, pattern, str(packed)):
        assert [row.values for row in read_rows(name)] == rows
    with gzip.open(tmp_path / "whole.jsonl.gz", "wb") as file:
        file.write(Path(whole).read_bytes())
    assert dataset_fingerprint(whole) == dataset_fingerprint(f"{whole}.gz")
    before = dataset_fingerprint(pattern)
    write("part-2.jsonl", rows[:1])
    assert dataset_fingerprint(pattern) != before


def test_a_list_of_any_layout_is_read_in_pieces_as_if_it_were_whole(tmp_path, monkeypatch):
    from lorastudy.data import sources

    draw = random.Random(1)
    rows = [
        {"text": '\u00e9\\\n"' * draw.randint(0, 5), "more": [{"a": [1, None, 1.5e-3]}] * draw.randint(0, 2)}
        for _ in range(40)
    ]
    for indent in (None, 1):
        for value in (rows, {"data": rows}):
            path = tmp_path / "rows.json"
            path.write_text(json.dumps(value, indent=indent, ensure_ascii=indent is None), encoding="utf-8")
            for size in (1, 7, 64):
                monkeypatch.setattr(sources, "_PIECE_BYTES", size)
                monkeypatch.setattr("lorastudy.data.values._START_LENGTH", 16)
                assert [row.values for row in read_rows(str(path))] == rows


def test_what_no_row_shows_and_how_many_were_compared_is_on_record(write, letters, monkeypatch):
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    rows = [
        {"messages": [{**turns[0], "content": f"q{i}"}, turns[1]], "url": "u" * (i % 2)} for i in range(60)
    ]
    rows[3]["messages"] = [{**turn, "mood": "good", "name": "Ann"} for turn in rows[3]["messages"]]
    settings = Settings(dataset_path=write("a.jsonl", rows), eval_dataset_path=write("b.jsonl", rows[10:20]))
    monkeypatch.setattr(near_copies_module, "MAX_ROWS", 8)
    sets = token_sets(train_and_eval(settings), settings, tokenizer=letters(), reach=None)
    train, held_out = sets["train"].summary, sets["eval"].summary
    assert (train.unused_columns, train.unseen_fields) == (("url",), ("mood",))  # headings show a name
    assert (held_out.unused_columns, held_out.unseen_fields) == (("url",), ())
    assert (held_out.num_compared_rows, held_out.num_compared_with, held_out.num_known_rows) == (8, 8, 60)
    assert train.num_compared_with is train.num_known_rows is None


def test_inputs_are_trained_in_the_same_rows_and_nothing_is_counted_or_guessed_from_them(many, letters):
    settings = Settings(dataset_path=many, max_seq_length=40)
    study = train_and_eval(settings)
    answers = token_sets(study, settings, tokenizer=letters(), reach=None)
    both = settings.model_copy(update={"train_on_inputs": True})
    inputs = token_sets(study, both, tokenizer=letters(), reach=None)
    assert inputs["train"].places == answers["train"].places
    for row, plain in zip(inputs["train"].rows, answers["train"].rows, strict=True):
        assert row.input_ids == plain.input_ids
        assert row.labels == (IGNORED, *plain.input_ids[1:])
    assert inputs["train"].summary == answers["train"].summary
    guesses, plain_guesses = (
        list(trivial_scores(sets, settings, vocab_size=128, num_positions=None)) for sets in (inputs, answers)
    )
    assert guesses == plain_guesses
    assert [row.labels for row in inputs["eval"].rows] == [row.labels for row in answers["eval"].rows]


@pytest.mark.parametrize("data_seed", range(2))
def test_rows_by_length_do_not_depend_on_the_length_of_the_training_nor_on_the_rows_that_were_read(
    many, letters, monkeypatch, data_seed
):
    monkeypatch.setattr(module, "MIN_ROWS", 1)
    monkeypatch.setattr(module, "COUNTED_ROWS", 30)
    settings = Settings(
        dataset_path=many, max_steps=6, max_seq_length=40, per_device_train_batch_size=4, group_by_length=True
    )
    study = train_and_eval(settings)

    def planned(*, num_steps, reach):
        train = token_sets(study, settings, tokenizer=letters(), reach=reach)["train"]
        plan = plan_batches(
            train, settings, data_seed=data_seed, num_steps=num_steps, device=torch.device("cpu")
        )
        return [[train.rows[row].input_ids for row in rows] for (rows,) in plan.row_numbers]

    reach = Reach.of(settings, max_steps=[6], data_seeds=[data_seed])
    long = planned(num_steps=100, reach=None)
    assert planned(num_steps=6, reach=None) == planned(num_steps=6, reach=reach) == long[:6]
    lengths = [[len(ids) for ids in batch] for batch in long]
    assert max(max(batch) - min(batch) for batch in lengths[:20]) <= 8
