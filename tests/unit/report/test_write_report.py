"""The report as files: what is in them, where they are, and that they come out the same."""

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from lorastudy.errors import StudyError
from lorastudy.protocol.records import ArmProfile, MemoryPrediction, PackProfile
from lorastudy.report import read_report, write
from lorastudy.report.html import chart_library
from lorastudy.report.numbers import ABSENT, MEMORY_KINDS
from lorastudy.report.sections.method import suite_of
from lorastudy.report.write import write_report
from lorastudy.stats.study import split_studies
from lorastudy.stats.verdicts import measured_errors
from lorastudy.suite.suite_file import load_suite, suite_yaml

pytestmark = pytest.mark.long

GOLDEN = Path(__file__).parents[2] / "golden" / "report_rank_study.md"
PLOTS = (
    "pairs",
    "rank_comparison",
    "efficiency_frontier",
    "training_time",
    "adapter_size",
    "parameters",
    "rows",
    "training_curves",
    "forgetting",
)


@pytest.fixture
def undrawn(monkeypatch):
    """Reports with empty plots and an empty page, for what is not about them: to draw takes seconds."""

    def touch(figure, folder):
        path = folder / f"{figure.name}.png"
        path.touch()
        return [path]

    monkeypatch.setattr(write, "save_figure", touch)
    monkeypatch.setattr(write, "render_html", lambda blocks: "")


@pytest.fixture
def text_of(undrawn, make_tracker, tmp_path):
    """The Markdown of a report on these results."""

    def make(results, **options):
        path, *_ = write_report(make_tracker(results), output=tmp_path / "R.md", **options)
        return path.read_text(encoding="utf-8")

    return make


def test_the_files_of_the_specification(written):
    folder, paths = written
    plots = [Path("results/plots") / f"{name}.{ending}" for name in PLOTS for ending in ("png", "svg")]
    assert paths == [Path("RESULTS.md"), Path("RESULTS.html"), *plots]
    assert all((folder / path).stat().st_size > 0 for path in paths)


def test_the_golden_report(written):
    """To accept a change: copy the RESULTS.md that the failing test leaves in its folder over the golden file."""
    assert (written[0] / "RESULTS.md").read_text(encoding="utf-8") == GOLDEN.read_text(encoding="utf-8")


def test_the_same_results_give_the_same_bytes(written, make_rank_results, make_tracker, tmp_path):
    folder, first = written
    second = write_report(make_tracker(make_rank_results()), output=tmp_path / "RESULTS.md")
    assert [(folder / path).read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_images_are_linked_relative_to_the_report(written):
    links = re.findall(r"\]\((.+?)\)", (written[0] / "RESULTS.md").read_text(encoding="utf-8"))
    assert len(links) == len(PLOTS)
    assert all((written[0] / link).is_file() for link in links)


def test_plots_may_go_elsewhere_and_two_reports_keep_their_own(undrawn, make_result, make_tracker, tmp_path):
    tracker = make_tracker([make_result("a", 0)])
    paths = write_report(tracker, output=tmp_path / "sub" / "Mine.md", plots=tmp_path / "pictures")
    assert "(../pictures/rank_comparison.png)" in paths[0].read_text(encoding="utf-8")
    assert (tmp_path / "pictures" / "rank_comparison.png").is_file()
    other = write_report(tracker, output=tmp_path / "sub" / "Other.md")
    assert other[2].parent == tmp_path / "sub" / "other" / "plots"


def test_the_page_needs_no_network_and_carries_its_library_once(written):
    page = (written[0] / "RESULTS.html").read_text(encoding="utf-8")
    assert len(page.encode()) < 2_000_000
    own = page.replace(chart_library(), "")
    assert len(page) - len(own) == len(chart_library())
    assert not re.search(r"<link|<script[^>]+src=|@import|url\(", own)
    assert not re.search(r"(?:src|href)\s*=\s*[\"']?(?:https?:)?//", own)
    assert "default-src 'none'" in own.replace("&#x27;", "'")
    # 1 + 3 + 1 + 2 + 1 + 1 + 1 + 1 + 1 panels
    assert own.count('<div class="chart"></div>') == 12


def test_page_and_markdown_say_the_same(written):
    page = (written[0] / "RESULTS.html").read_text(encoding="utf-8")
    text = (written[0] / "RESULTS.md").read_text(encoding="utf-8")
    for row in re.findall(r"^\| (r=\d+.*) \|$", text, flags=re.MULTILINE):
        for cell in row.split(" | "):
            assert cell.replace("<", "&lt;") in page


def test_failures_are_counted_on_the_first_page_and_told_with_their_message(rank_study, text_of):
    failed = replace(
        rank_study[0],
        status="failed",
        failure_kind="diverged",
        failure_message="loss | is <b>nan</b>",
        scores={},
        profile=None,
    )
    waiting = replace(rank_study[1], status="pending", scores={}, profile=None)
    text = text_of([failed, waiting, *rank_study[2:]])
    assert "- 2 of 36 experiments did not complete: 1 diverged and 1 pending.\n" in text
    assert text.index("2 of 36 experiments did not complete") < text.index("## Results")
    assert text.index("## Failures and divergences") < text.index("## Environment")
    assert "diverged at step 250 | loss \\| is &lt;b>nan&lt;/b> |" in text
    assert "Not finished: r=1, seed 1." in text
    assert re.search(r"\| r=1 \(untuned\) \| 4 of 6 \|", text)


def test_no_failures_no_section(written):
    assert "Failures" not in (written[0] / "RESULTS.md").read_text(encoding="utf-8")


def test_an_arm_that_never_completed_has_a_row_of_dashes(make_result, text_of):
    results = [
        make_result("r16", 0),
        make_result("r32", 0, settings={"lora_rank": 32}, status="failed", scores={}),
    ]
    assert f"| r=32 (untuned) | 0 of 1 | {' | '.join([ABSENT] * 10)} |" in text_of(results)


def test_suites_are_parts_of_their_own_with_plots_of_their_own(undrawn, make_result, make_tracker, tmp_path):
    results = [make_result("a", 0, suite_name=name) for name in ("First Suite", "first/suite")]
    results.append(make_result("b", 0, suite_name="third", experiment_type="own"))
    paths = write_report(make_tracker(results), output=tmp_path / "R.md")
    text = paths[0].read_text(encoding="utf-8")
    assert "## First Suite (rank ablation)" in text
    assert "## third (own)" in text
    stems = {path.stem for path in paths[2:]}
    assert {"first_suite_rank_comparison", "first_suite_2_rank_comparison", "third_arm_comparison"} <= stems


def test_a_report_may_cover_one_type_or_one_suite(make_result, text_of):
    results = [
        make_result("a", 0, suite_name="first"),
        make_result("b", 0, suite_name="third", experiment_type="own"),
    ]
    assert "# LoRA study: third (own)" in text_of(results, experiment_type="own")
    assert "third" not in text_of(results, suite_name="first")


def test_a_suite_that_failed_as_a_whole_is_still_told(make_result, text_of):
    failed = make_result(
        "b", 0, suite_name="second", status="failed", failure_message="no such module", scores={}
    )
    text = text_of([make_result("a", 0, suite_name="first"), failed])
    assert text.index("## second (rank ablation)") < text.index("no such module")


def test_the_description_of_the_suite_stands_above_its_question(undrawn, rank_study, make_tracker, tmp_path):
    tracker = make_tracker(rank_study, description="What does rank | buy?")
    path, *_ = write_report(tracker, output=tmp_path / "R.md")
    _, _, text = path.read_text(encoding="utf-8").partition("## Question and runs\n\n")
    description, question, *_ = text.split("\n\n")
    assert description.startswith("What does rank")
    assert description.endswith("buy?")
    assert question.startswith("**Question.**")


def test_what_differs_between_arms_is_listed_and_not_read_from_the_first(make_result, text_of):
    settings = [
        {"lora_rank": 4},
        {"lora_rank": 8, "data_seed": 1, "dataset_path": "more.jsonl", "max_new_tokens": 9},
    ]
    results = [make_result("r4", seed, settings=settings[0]) for seed in range(3)]
    results += [make_result("r8", seed, settings=settings[1]) for seed in range(2)]
    text = text_of(results)
    assert "2 arms with 2 to 3 seeds each on the base model lab, trained on lab:facts and more.jsonl" in text
    assert (
        "data_seed, which differs between arms (the seed itself and 1), so their pairs did not train on the same batches"
        in text
    )
    assert "held out of the training file by content hash, not the same for all arms" in text
    assert (
        "An answer ends after 32 and 9 tokens (max_new_tokens), so a longer reference counts as wrong."
        in text
    )


def test_a_reference_that_did_not_complete_is_named(make_result, text_of):
    results = [make_result(f"r{rank}", 0, settings={"lora_rank": rank}) for rank in (4, 8)]
    results.append(make_result("r16", 0, settings={"lora_rank": 16}, status="failed", scores={}))
    text = text_of(results)
    assert "(r=8, in place of r=16, the reference by design, which has no completed run)" in text
    assert "named by the design" in text_of(results[:2])


def test_a_reference_at_its_best_rate_is_not_said_to_be_of_the_design_alone(make_result, text_of):
    losses = {(4, 1e-4): 2.0, (4, 1e-3): 1.5, (8, 1e-4): 1.2, (8, 1e-3): 1.0}
    text = text_of(
        [
            make_result(
                f"r{rank}_{rate:g}",
                0,
                settings={"lora_rank": rank, "learning_rate": rate},
                scores={("eval", "loss"): loss},
            )
            for (rank, rate), loss in losses.items()
        ]
    )
    assert (
        "(r=8, lr 1e-3, named by the design and not by its result, but for its learning rate, the best of 2 by"
        in text
    )


def test_pairs_left_out_say_why(rank_study, text_of):
    changed = [replace(r, sources={"base_model": "other"}) if r.arm == "r4" else r for r in rank_study]
    assert (
        "**Different base models.** Pairs of r=4 with the reference were left out for some seeds."
        in text_of(changed)
    )


@pytest.mark.parametrize(
    ("engines", "said"),
    [
        (
            ("packed",),
            "The arms of a pack trained together on one base model; a step is one step of all of them. Tokens",
        ),
        (
            ("reference",),
            "The arms of a pack trained one after another on one base model; a step is one arm's. Tokens",
        ),
        (("packed", "reference"), "With the engine reference they trained one after another"),
    ],
)
def test_packs_say_whose_step_and_whose_memory_it_is(make_result, text_of, engines, said):
    results = [
        make_result(f"r{index}", 0, pack_id=engine, attempt=1, pack_profile=a_pack(engine))
        for index, engine in enumerate(engines)
    ]
    text = text_of(results)
    assert said in text
    assert (
        "memory is the greatest resident size of the worker process: earlier packs, profiling and libraries included."
        in text
    )


def a_prediction(result, *, alone, pack, kind="cpu_tensors"):
    terms = (
        "quantisation_constants",
        "adapters",
        "gradients",
        "optimizer",
        "activations",
        "loss",
        "workspace",
    )
    return MemoryPrediction(
        experiment_id=result.experiment_id, memory_kind=kind, num_tokens=100, num_labels=50, alone_bytes=alone,
        pack_bytes=pack, step_seconds=None, base_weights=alone, allocator_slack=0, **dict.fromkeys(terms, 0),
    )  # fmt: skip


def test_predictions_stand_beside_what_was_measured_with_signed_errors(make_result, add_profile, text_of):
    results = [
        add_profile(make_result(f"r{rank}", 0), parameters=10, memory=memory, step=0.1)
        for rank, memory in ((4, 1000 * 2**20), (8, 2000 * 2**20))
    ]
    first, second = (
        replace(result, prediction=a_prediction(result, alone=alone, pack=alone))
        for result, alone in zip(results, (1010 * 2**20, 1960 * 2**20), strict=True)
    )
    text = text_of([first, second])
    assert "## Predicted against measured memory" in text
    # 1010 / 1000 - 1 = 1 %, 1960 / 2000 - 1 = -2 %; the median of 1 and 2 is 1.5
    assert "| r4, alone | 0.99 | 0.98 | +1.0 |" in text
    assert "| r8, alone | 1.91 | 1.95 | \N{MINUS SIGN}2.0 |" in text
    assert "the median absolute error is 1.5 %, the largest 2.0 %" in text
    assert "only those of each arm alone" in text


def test_a_report_without_predictions_says_nothing_of_them(make_result, text_of):
    assert "Predicted against" not in text_of([make_result("r4", 0)])


def a_pack(engine):
    return PackProfile(
        engine=engine,
        num_arms=2,
        memory_kind="cpu_resident",
        peak_memory_bytes=2**30,
        median_step_seconds=0.1,
        tokens_per_second=1000.0,
        load_seconds=1.0,
        train_seconds=2.0,
        eval_seconds=3.0,
    )


def test_the_report_describes_every_meter():
    kinds = {
        kind
        for record in (ArmProfile, PackProfile)
        for kind in get_args(get_type_hints(record)["memory_kind"])
    }
    assert set(MEMORY_KINDS) == kinds


def test_a_time_that_noise_hides_is_a_dash_with_its_reason_and_counts_for_nobody(rank_study, text_of):
    hidden = [
        replace(
            run,
            profile=replace(run.profile, step_seconds=None, tokens_per_second=None, step_times_apart=0.23),
        )
        if run.arm == "r4"
        else run
        for run in rank_study
    ]
    text = text_of(hidden)
    assert "Counted: score, peak memory, forgetting." in text
    assert "better on one. Counted" in text  # no word of a floor of times
    reason = "Step time unknown, since two measurements of the arm, or of most arms of its pack, differed (r=4: 23.0 % apart)."
    assert text.count(reason) == 2  # beside the table, and where the report says how it was measured
    # .0128 s; the quartiles lie .04 of it apart
    assert "| 12.8 ± 0.3 |" in text
    assert re.search(rf"\| r=4 \(untuned\) \| 6 .* \| 8.81 \| {ABSENT} \| {ABSENT} \|", text)


def test_a_time_from_too_few_rounds_is_a_dash_with_that_reason(rank_study, text_of):
    few = {"step_seconds": None, "tokens_per_second": None, "num_timed_steps": 2, "step_times_apart": 0.01}
    hidden = [
        replace(run, profile=replace(run.profile, **few)) if run.arm == "r4" else run for run in rank_study
    ]
    text = text_of(hidden)
    assert "Step time unknown, since the time for timing ended after too few steps (r=4: " in text
    assert "since two measurements" not in text


def test_times_of_before_are_shown_and_count_for_nobody(rank_study, text_of):
    noise = dict.fromkeys(("num_timed_steps", "step_quartile_distance_seconds", "step_times_apart"))
    before = [replace(run, profile=replace(run.profile, **noise)) for run in rank_study]
    text = text_of(before)
    assert "Counted: score, peak memory, forgetting." in text
    assert "The noise of the times was not measured." in text
    assert "| 12.8 | 93,750 |" in text


def test_costs_of_packs_that_differ_have_their_range(rank_study, text_of):
    """Seeds in packs of their own have a largest step each: peak memory differs by what its tokens need."""
    spread = [
        replace(run, profile=replace(run.profile, peak_memory_bytes=2**20 * (10 + run.seed)))
        for run in rank_study
    ]
    assert "| 12.5 (10.0 to 15.0) |" in text_of(spread)


def test_environments_that_differ_are_shown_and_flagged(rank_study, text_of):
    other = replace(rank_study[-1].environment, torch="9.9")
    text = text_of([*rank_study[:-1], replace(rank_study[-1], environment=other)])
    assert "**Results come from 2 environments.**" in text
    assert "| torch | 2.13.0 | 9.9 |" in text
    assert "**Environments differ.**" in text


def test_the_rule_of_a_verdict_is_that_of_the_study(make_rank_results, text_of):
    one = text_of(make_rank_results(ranks=(1, 2)))
    assert (
        "when the paired t test and the exact sign-flip test are both below .05, which takes at least 6"
        in one
    )
    assert "the t test alone decides" not in one
    many = text_of(make_rank_results(ranks=(1, 2, 4), num_seeds=23))
    assert "the paired t test, Holm-corrected over these 2 comparisons, and the exact sign-flip test" in many
    assert "Beyond 22 seeds the t test alone decides." in many


def test_the_errors_of_verdicts_are_told_in_numbers_where_there_are_verdicts(
    rank_study, make_result, text_of
):
    worst = {(one["kind"], one["num_rows"]): one for one in measured_errors()}["very skewed seeds", None]
    told = f"{100 * worst['better']:.1f} and {100 * worst['as_good']:.1f} % with very skewed seeds"
    assert told in text_of(rank_study)
    assert "with very skewed seeds" not in text_of([make_result("r4", 0)])


def test_three_seeds_give_no_verdict_anywhere(make_rank_results, text_of):
    text = text_of(make_rank_results(num_seeds=3))
    rows = re.findall(r"^\| r=\d+ \| 3 \| \+.*\| (.+?) \|$", text, flags=re.MULTILINE)
    # r=16 is so near to r=32 that three seeds do not even lean.
    assert rows[:4] == ["cannot tell (needs about 3 more seeds)"] * 4
    assert re.fullmatch(r"cannot tell \(needs about \d+ more seeds\)", rows[4])
    assert not re.search(r"r=\d+ is better", text)


def test_what_is_missing_is_named(make_result, text_of):
    text = text_of([make_result("a", 0)])
    assert "- Exact match: not measured (set max_generation_samples above 0)." in text
    assert "- Peak memory: not measured." in text
    assert "- Step time: not measured." in text


def test_where_no_step_was_timed_the_report_says_why(rank_study, text_of):
    hidden = [
        replace(
            run,
            profile=replace(run.profile, step_seconds=None, tokens_per_second=None, step_times_apart=0.23),
        )
        for run in rank_study
    ]
    assert "- Step time: not measured. Step time unknown, since two measurements of the arm" in text_of(
        hidden
    )


def test_an_empty_store_says_what_to_run(make_tracker):
    with pytest.raises(StudyError, match="lorastudy suite"):
        write_report(make_tracker([]))


def test_a_filter_that_matches_nothing_is_named(rank_study, make_tracker):
    with pytest.raises(StudyError, match="of type 'module_ablation'"):
        write_report(make_tracker(rank_study), experiment_type="module_ablation")


def test_nothing_completed_says_why(make_result, make_tracker):
    failed = make_result("a", 0, status="failed", failure_message="out of memory", scores={})
    with pytest.raises(
        StudyError, match=r"What went wrong: out of memory\. .* `lorastudy resume rank_sweep`, or"
    ):
        write_report(make_tracker([failed]))


def test_runs_that_were_left_are_no_mistake_to_mend(make_result, make_tracker):
    left = make_result("a", 0, status="stopped", failure_message="the worker was asked to leave", scores={})
    with pytest.raises(
        StudyError, match=r"To go on: `lorastudy resume rank_sweep`, then `lorastudy report`\."
    ):
        write_report(make_tracker([left]))


def test_after_an_interrupt_the_report_names_the_command_that_the_suite_named(make_result, make_tracker):
    left = [
        make_result("a", 0, status="stopped", scores={}),
        make_result("a", 1, status="pending", scores={}),
    ]
    with pytest.raises(StudyError) as told:
        read_report(make_tracker(left), store_flags=("--database", "my store.db"))
    assert str(told.value).endswith(
        "has completed. To go on: `lorastudy resume rank_sweep --database 'my store.db'`, then `lorastudy report`."
    )
    two = [*left, make_result("a", 0, suite_name="other", status="stopped", scores={})]
    with pytest.raises(StudyError, match="To go on: `lorastudy resume`, then"):
        read_report(make_tracker(two))


def test_the_printed_suite_is_the_study(rank_study, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (study,) = split_studies(rank_study)
    path = tmp_path / "suite.yaml"
    path.write_text(suite_yaml(suite_of(study)), encoding="utf-8")
    suite = load_suite(path)
    assert (suite.name, suite.experiment_type) == (study.suite_name, study.experiment_type)
    assert [(arm.name, arm.settings) for arm in suite.arms] == [
        (arm.name, arm.typed_settings) for arm in study.arms
    ]
    assert {arm.seeds for arm in suite.arms} == {(0, 1, 2, 3, 4, 5)}


def test_reporting_imports_no_training_library():
    code = "import sys, lorastudy.report.write; print({'torch', 'transformers', 'peft', 'datasets'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"


def test_what_a_chat_template_added_and_could_not_do_is_told(text_of, make_result):
    summary = replace(make_result().data[0], format="messages")
    told = replace(
        summary, layout="chat", num_fallback_rows=3, template_preamble="Be kind.", template_date="2024-07-26"
    )
    assert (
        "The model's chat template lays them out. Before each row it adds 'Be kind.'. It asks for today's date, which "
        "is always 2024-07-26. 3 rows call functions, which it does not know: it gets them as text."
    ) in text_of([make_result(data=(told,))])
    long = text_of([make_result(data=(replace(told, template_preamble="a" * 401),))])
    assert f"{'a' * 400!r} (shortened from 401 characters)." in long
    assert "lays them out" not in text_of([make_result(data=(summary,))])  # runs that did not record it


def test_columns_and_fields_that_no_row_shows_are_named(text_of, make_result):
    summary = replace(make_result().data[0], format="messages")
    told = replace(summary, unused_columns=("url", "id"), unseen_fields=("mood",))
    assert (
        "Columns of its file that are not used: url and id. Fields of messages that the model never sees: mood."
    ) in text_of([make_result(data=(told,))])
    many = replace(told, unused_columns=("x" * 5_000, *(f"column {number}" for number in range(500))))
    assert f"not used: {'x' * 40}..., column 0, column 1" in text_of([make_result(data=(many,))])
    assert "column 400" not in text_of([make_result(data=(many,))])
    for nothing in (summary, replace(summary, unused_columns=(), unseen_fields=())):
        text = text_of([make_result(data=(nothing,))])
        assert "not used" not in text
        assert "show nothing" not in text


def test_rows_of_long_texts_are_told_with_their_texts(text_of, make_result):
    summary = replace(
        make_result().data[0], split="eval", num_rows=1_057, num_refused_rows=0, num_texts=10, num_leaked_rows=1,
        num_compared_rows=10, num_compared_with=90, num_known_rows=90,
    )  # fmt: skip
    text = text_of([make_result(data=(summary,))])
    assert "Data, eval: 1,057 rows of 10 texts (alpaca)" in text
    assert "1 of all 10 texts are also in the training rows" in text
    assert "0 of 10 that were compared" in text
    assert "sample of" not in text
    assert "1,057 rows (alpaca)" in text_of([make_result(data=(replace(summary, num_texts=1_057),))])
    sampled = replace(summary, num_rows=90_000, num_texts=12_000, num_compared_rows=10_000)
    assert "a sample of 10,000 of 12,000 texts was compared with all 90 " in text_of(
        [make_result(data=(sampled,))]
    )


@pytest.mark.parametrize(
    ("counts", "told"),
    [
        (
            (12_000, 10_000, 10_000, 52_000),
            "a sample of 10,000 of 12,000 rows was compared with a sample of 10,000 of 52,000",
        ),
        ((500, 500, 10_000, 52_000), "all 500 rows were compared with a sample of 10,000 of 52,000"),
        ((12_000, 10_000, 800, 800), "a sample of 10,000 of 12,000 rows was compared with all 800"),
        ((500, 500, 800, 800), None),
        ((500, 500, None, None), None),
    ],
)
@pytest.mark.parametrize("split", ["eval", "test"])
def test_a_sample_on_which_near_copies_were_counted_is_told(text_of, make_result, counts, told, split):
    num_rows, compared, compared_with, known = counts
    summary = replace(
        make_result().data[0], split=split, num_rows=num_rows - 1, num_refused_rows=1, num_near_copies=3,
        num_compared_rows=compared, num_compared_with=compared_with, num_known_rows=known,
    )  # fmt: skip
    text = text_of([make_result(data=(summary,))])
    assert f"3 of {compared:,} that were compared have a prompt that differs by a few words" in text
    whose = "trained on or among the rows that choose" if split == "test" else "trained on"
    if told is None:
        assert "sample of" not in text
    else:
        assert f" For this, {told} that are {whose}." in text
