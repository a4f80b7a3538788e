"""The tables of the store. A new store gets them from here; migrations bring earlier stores to the same tables.

The SQL is portable: text, whole numbers and doubles. Times are ISO 8601 in UTC. Anything but a single value (settings,
the values of the items) is canonical JSON in a text column. An absent measurement is NULL.

Every row carries `row_sha256` over the canonical JSON of the rest of the row (see `rows`), because SQLite's own
`integrity_check` looks at pages and keys, not at values: it missed 57 % of single flipped bits.
"""

from sqlalchemy import (
    BigInteger,
    Column,
    Double,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    MetaData,
    Table,
    Text,
)

#: The revision of these tables. A test keeps it equal to the newest file in `migrations/versions`. It is written here
#: so that neither a new nor a current store needs alembic.
HEAD_REVISION = "r0005"

#: Revisions of stores from before the first release. Their run folders can be rebuilt; the stores are not read.
UNRELEASED_REVISIONS = tuple(f"{number:04}" for number in range(1, 10))

#: Not alembic's default name, which MLflow and Optuna use too: a PostgreSQL database may be shared.
VERSION_TABLE = "lorastudy_version"

#: Alembic reads and writes this table, so it is not in our metadata.
version = Table(VERSION_TABLE, MetaData(), Column("version_num", Text, nullable=False))

metadata = MetaData()


def _hash() -> "Column[str]":
    return Column("row_sha256", Text, nullable=False)


def _run_key() -> "tuple[Column[str], Column[int]]":
    return (
        Column("experiment_id", Text, primary_key=True),
        Column("attempt", BigInteger, primary_key=True, autoincrement=False),
    )


def _of_a_run() -> ForeignKeyConstraint:
    return ForeignKeyConstraint(["experiment_id", "attempt"], ["runs.experiment_id", "runs.attempt"])


def _pack_key() -> "tuple[Column[str], Column[int]]":
    return (
        Column("pack_id", Text, primary_key=True),
        Column("attempt", BigInteger, primary_key=True, autoincrement=False),
    )


suites = Table(
    "suites",
    metadata,
    Column("suite_name", Text, primary_key=True),
    Column("description", Text, nullable=False),
    Column("created_at", Text, nullable=False),
    _hash(),
)

suite_designs = Table(
    "suite_designs",
    metadata,
    Column("suite_name", Text, ForeignKey("suites.suite_name"), primary_key=True),
    Column("design", Text, nullable=False, comment="JSON: the arms with their settings and seeds"),
    _hash(),
)

suite_decisions = Table(
    "suite_decisions",
    metadata,
    Column("suite_name", Text, ForeignKey("suites.suite_name"), primary_key=True),
    Column("key", Text, primary_key=True, comment="hash of what it was decided about"),
    Column("decision", Text, nullable=False, comment="JSON: what was decided, and under which libraries"),
    Column("decided_at", Text, nullable=False),
    _hash(),
)

suite_questions = Table(
    "suite_questions",
    metadata,
    Column("suite_name", Text, ForeignKey("suites.suite_name"), primary_key=True),
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    Column("question_id", Text, nullable=False),
    Column("question", Text, nullable=False, comment="JSON: metric, margin, reference, seeds, splits"),
    Column("stated_at", Text, nullable=False),
    Column("num_completed", BigInteger, nullable=False, comment="experiments of the suite done by then"),
    _hash(),
)

experiments = Table(
    "experiments",
    metadata,
    Column("experiment_id", Text, primary_key=True),
    Column("seed", BigInteger, nullable=False),
    Column("config", Text, nullable=False, comment="JSON: settings and sources"),
    _hash(),
)

suite_experiments = Table(
    "suite_experiments",
    metadata,
    Column("suite_name", Text, ForeignKey("suites.suite_name"), primary_key=True),
    Column("experiment_id", Text, ForeignKey("experiments.experiment_id"), primary_key=True),
    Column("name", Text, nullable=False),
    Column("arm", Text, nullable=False),
    Column("experiment_type", Text, nullable=False),
    Column("position", BigInteger, nullable=False),
    _hash(),
)

runs = Table(
    "runs",
    metadata,
    Column("experiment_id", Text, ForeignKey("experiments.experiment_id"), primary_key=True),
    Column("attempt", BigInteger, primary_key=True, autoincrement=False),
    Column("status", Text, nullable=False, comment="running, completed, failed or stopped"),
    Column("pack_id", Text, nullable=False),
    Column("engine", Text, nullable=False),
    Column("run_folder", Text, nullable=False),
    Column("started_at", Text, nullable=False),
    Column("finished_at", Text),
    Column("failure_kind", Text),
    Column("failure_message", Text),
    Column("traceback", Text),
    Column("adapter_path", Text, comment="relative to the run folder"),
    Column("num_steps", BigInteger),
    Column("num_planned_steps", BigInteger, comment="more than num_steps if the arm stopped early"),
    Column("selected_step", BigInteger, comment="of the saved adapter, where the best is selected"),
    _hash(),
    Index("runs_by_pack", "pack_id", "attempt"),
)

pack_steps = Table(
    "pack_steps",
    metadata,
    *_pack_key(),
    Column("step", BigInteger, primary_key=True, autoincrement=False),
    Column("num_steps", BigInteger, nullable=False),
    Column("num_tokens", BigInteger, nullable=False),
    Column("num_completion_tokens", BigInteger, nullable=False),
    Column("seconds", Double, nullable=False),
    _hash(),
)

steps = Table(
    "steps",
    metadata,
    *_run_key(),
    Column("step", BigInteger, primary_key=True, autoincrement=False),
    Column("loss", Double),
    Column("learning_rate", Double, nullable=False),
    Column("grad_norm", Double),
    _hash(),
    _of_a_run(),
)

scores = Table(
    "scores",
    metadata,
    *_run_key(),
    Column("split", Text, primary_key=True),
    Column("metric", Text, primary_key=True),
    Column("version", BigInteger, nullable=False),
    Column("unit", Text, nullable=False),
    Column("value", Double, nullable=False),
    Column("num_items", BigInteger, nullable=False),
    Column("step", BigInteger, comment="after which it was scored; NULL at the end and before training"),
    Column("train_seconds", Double, comment="of the experiment up to that step"),
    _hash(),
    _of_a_run(),
)

score_items = Table(
    "score_items",
    metadata,
    *_run_key(),
    Column("split", Text, primary_key=True),
    Column("metric", Text, primary_key=True),
    Column("items", Text, nullable=False, comment="JSON: one number per item"),
    Column("weights", Text, comment="JSON: one whole number per item; NULL where all are one"),
    _hash(),
    ForeignKeyConstraint(
        ["experiment_id", "attempt", "split", "metric"],
        ["scores.experiment_id", "scores.attempt", "scores.split", "scores.metric"],
    ),
)

#: Scores that a later pass gave to the adapter of a completed run.
added_scores = Table(
    "added_scores",
    metadata,
    *_run_key(),
    Column("split", Text, primary_key=True),
    Column("metric", Text, primary_key=True),
    Column("version", BigInteger, nullable=False),
    Column("unit", Text, nullable=False),
    Column("value", Double, comment="NULL where no row has a number"),
    Column("items", Text, nullable=False, comment="JSON: one number per item, null where the metric failed"),
    Column("weights", Text, comment="JSON: one whole number per item; NULL where all are one"),
    Column("failed_rows", Text, nullable=False, comment="JSON: a list of rows, each with its message"),
    Column("source_sha256", Text, comment="of the file of a user's own metric"),
    _hash(),
    _of_a_run(),
)

generations = Table(
    "generations",
    metadata,
    *_run_key(),
    Column("position", BigInteger, primary_key=True, autoincrement=False),
    Column("prompt", Text, nullable=False),
    Column("reference", Text, nullable=False),
    Column("answer", Text, nullable=False),
    Column("split", Text, comment="NULL in rows of an older version, as the next column"),
    Column("row", BigInteger, comment="place among the scored rows of the split, from 0"),
    _hash(),
    _of_a_run(),
)

profiles = Table(
    "profiles",
    metadata,
    *_run_key(),
    Column("num_trainable_parameters", BigInteger, nullable=False),
    Column("num_total_parameters", BigInteger, nullable=False),
    Column("adapter_bytes", BigInteger, nullable=False),
    Column("memory_kind", Text, nullable=False),
    Column("peak_memory_bytes", BigInteger),
    Column("step_seconds", Double, comment="NULL where two measurements of the arm did not agree"),
    Column("tokens_per_second", Double),
    Column("num_timed_steps", BigInteger),
    Column("step_quartile_distance_seconds", Double),
    Column("step_times_apart", Double, comment="share by which two measurements of the arm differed"),
    Column("modules_by_role", Text, comment="JSON: role -> number of adapted layers; NULL where not counted"),
    Column("modules_left_out", Text, comment="JSON: what the preset means and PEFT cannot adapt"),
    Column("modules_digest", Text, comment="equal for experiments that adapt the same layers"),
    _hash(),
    _of_a_run(),
)

pack_profiles = Table(
    "pack_profiles",
    metadata,
    *_pack_key(),
    Column("engine", Text, nullable=False),
    Column("num_arms", BigInteger, nullable=False),
    Column("memory_kind", Text, nullable=False),
    Column("peak_memory_bytes", BigInteger),
    Column("median_step_seconds", Double),
    Column("tokens_per_second", Double),
    Column("load_seconds", Double, nullable=False),
    Column("train_seconds", Double, nullable=False),
    Column("eval_seconds", Double, nullable=False),
    Column("cuda_allocator", Text),
    _hash(),
)

incidents = Table(
    "incidents",
    metadata,
    *_pack_key(),
    Column("position", BigInteger, primary_key=True, autoincrement=False),
    Column("kind", Text, nullable=False),
    Column("step", BigInteger),
    Column("message", Text, nullable=False),
    _hash(),
)

checkpoint_profiles = Table(
    "checkpoint_profiles",
    metadata,
    *_pack_key(),
    Column("num_checkpoints", BigInteger, nullable=False),
    Column("last_bytes", BigInteger, nullable=False),
    Column("seconds", Double, nullable=False),
    _hash(),
)

imports = Table(
    "imports",
    metadata,
    Column("import_id", Text, primary_key=True),
    Column("suite_name", Text, nullable=False),
    Column("tool", Text, nullable=False, comment="what made the file"),
    Column("file", Text, nullable=False),
    Column("file_sha256", Text, nullable=False),
    Column("imported_at", Text, nullable=False),
    _hash(),
)

#: Imported results have their own tables, so that no read of your own runs can return one.
imported_results = Table(
    "imported_results",
    metadata,
    Column("result_id", Text, primary_key=True),
    Column("import_id", Text, ForeignKey("imports.import_id"), nullable=False),
    Column("position", BigInteger, nullable=False, comment="in the order of import"),
    Column("location", Text, nullable=False, comment="the file, with the line where it has several results"),
    Column("arm", Text, nullable=False),
    Column("seed", BigInteger, comment="NULL where it was not recorded"),
    Column("config", Text, nullable=False, comment="JSON: settings and sources"),
    Column("scores", Text, nullable=False, comment="JSON: a list, the primary metric first"),
    Column("costs", Text, nullable=False, comment="JSON: a mapping"),
    _hash(),
)

predictions = Table(
    "predictions",
    metadata,
    *_run_key(),
    Column("memory_kind", Text, nullable=False),
    Column("num_tokens", BigInteger, nullable=False, comment="of the largest micro-batch"),
    Column("num_labels", BigInteger, nullable=False),
    Column("alone_bytes", BigInteger, nullable=False, comment="the sum of the terms below"),
    Column("pack_bytes", BigInteger, nullable=False),
    Column("step_seconds", Double, comment="of the whole pack; NULL without a calibration"),
    Column("base_weights", BigInteger, nullable=False),
    Column("quantisation_constants", BigInteger, nullable=False),
    Column("adapters", BigInteger, nullable=False),
    Column("gradients", BigInteger, nullable=False),
    Column("optimizer", BigInteger, nullable=False),
    Column("activations", BigInteger, nullable=False),
    Column("loss", BigInteger, nullable=False),
    Column("workspace", BigInteger, nullable=False),
    Column("allocator_slack", BigInteger, nullable=False),
    _hash(),
    _of_a_run(),
)

data_summaries = Table(
    "data_summaries",
    metadata,
    *_pack_key(),
    Column("split", Text, primary_key=True),
    Column("format", Text, nullable=False),
    Column("num_rows", BigInteger, nullable=False),
    Column("num_refused_rows", BigInteger, nullable=False),
    Column("num_truncated_rows", BigInteger, nullable=False),
    Column("num_tokens", BigInteger, nullable=False),
    Column("num_completion_tokens", BigInteger, nullable=False),
    Column("num_duplicate_rows", BigInteger),
    Column("num_leaked_rows", BigInteger),
    Column("num_unread_rows", BigInteger),
    Column("num_known_prompts", BigInteger),
    Column("num_near_copies", BigInteger),
    Column("num_compared_rows", BigInteger),
    Column("split_by", Text, comment="prompt or row; NULL where the rows have a file of their own"),
    Column(
        "groups",
        Text,
        comment="JSON: for each row a number that rows of one prompt share; NULL where none do",
    ),
    Column("layout", Text, comment="chat, alpaca, plain or text: what laid the rows out"),
    Column("num_fallback_rows", BigInteger),
    Column("template_preamble", Text),
    Column("template_date", Text),
    Column("num_asked_rows", BigInteger),
    Column("num_long_answers", BigInteger),
    Column("num_compared_with", BigInteger),
    Column("num_known_rows", BigInteger),
    Column("unused_columns", Text, comment="JSON: columns of the file that hold something and play no part"),
    Column("unseen_fields", Text, comment="JSON: fields of messages of which the text shows nothing"),
    Column("num_texts", BigInteger),
    _hash(),
)
#: Columns of a data summary that hold a list as JSON; NULL if the list was not recorded.
LISTS_OF_A_DATA_SUMMARY = ("groups", "unused_columns", "unseen_fields")

trivial_scores = Table(
    "trivial_scores",
    metadata,
    *_pack_key(),
    Column("split", Text, primary_key=True),
    Column("predictor", Text, primary_key=True, comment="constant, frequencies or unigram"),
    Column("metric", Text, primary_key=True),
    Column("version", BigInteger, nullable=False),
    Column("unit", Text, nullable=False),
    Column("value", Double, nullable=False),
    Column("items", Text, nullable=False, comment="JSON: one number per item"),
    Column("weights", Text, comment="JSON: one whole number per item; NULL where all are one"),
    Column("answer", Text, comment="of the constant answer, where it is compared as a text"),
    _hash(),
)

environments = Table(
    "environments",
    metadata,
    Column("environment_id", Text, primary_key=True),
    Column("python", Text, nullable=False),
    Column("torch", Text, nullable=False),
    Column("transformers", Text, nullable=False),
    Column("peft", Text, nullable=False),
    Column("bitsandbytes", Text, nullable=False),
    Column("lorastudy", Text, nullable=False),
    Column("device", Text, nullable=False),
    Column("device_name", Text, nullable=False),
    Column("num_threads", BigInteger, nullable=False),
    Column("algorithms", Text),
    _hash(),
)

pack_environments = Table(
    "pack_environments",
    metadata,
    *_pack_key(),
    Column("environment_id", Text, ForeignKey("environments.environment_id"), nullable=False),
    _hash(),
)
