"""The first tables."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Create all tables, each after those it points to."""
    op.create_table(
        "data_summaries",
        sa.Column("pack_id", sa.Text, nullable=False),
        sa.Column("attempt", sa.BigInteger, autoincrement=False, nullable=False),
        sa.Column("split", sa.Text, nullable=False),
        sa.Column("format", sa.Text, nullable=False),
        sa.Column("num_rows", sa.BigInteger, nullable=False),
        sa.Column("num_refused_rows", sa.BigInteger, nullable=False),
        sa.Column("num_truncated_rows", sa.BigInteger, nullable=False),
        sa.Column("num_tokens", sa.BigInteger, nullable=False),
        sa.Column("num_completion_tokens", sa.BigInteger, nullable=False),
        sa.Column("num_duplicate_rows", sa.BigInteger),
        sa.Column("num_leaked_rows", sa.BigInteger),
        sa.Column("row_sha256", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("pack_id", "attempt", "split"),
    )
    op.create_table(
        "environments",
        sa.Column("environment_id", sa.Text, nullable=False),
        sa.Column("python", sa.Text, nullable=False),
        sa.Column("torch", sa.Text, nullable=False),
        sa.Column("transformers", sa.Text, nullable=False),
        sa.Column("peft", sa.Text, nullable=False),
        sa.Column("bitsandbytes", sa.Text, nullable=False),
        sa.Column("lorastudy", sa.Text, nullable=False),
        sa.Column("device", sa.Text, nullable=False),
        sa.Column("device_name", sa.Text, nullable=False),
        sa.Column("num_threads", sa.BigInteger, nullable=False),
        sa.Column("row_sha256", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("environment_id"),
    )
    op.create_table(
        "experiments",
        sa.Column("experiment_id", sa.Text, nullable=False),
        sa.Column("seed", sa.BigInteger, nullable=False),
        sa.Column("config", sa.Text, nullable=False, comment="JSON: settings and sources"),
        sa.Column("row_sha256", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("experiment_id"),
    )
    op.create_table(
        "pack_profiles",
        sa.Column("pack_id", sa.Text, nullable=False),
        sa.Column("attempt", sa.BigInteger, autoincrement=False, nullable=False),
        sa.Column("engine", sa.Text, nullable=False),
        sa.Column("num_arms", sa.BigInteger, nullable=False),
        sa.Column("memory_kind", sa.Text, nullable=False),
        sa.Column("peak_memory_bytes", sa.BigInteger),
        sa.Column("median_step_seconds", sa.Double),
        sa.Column("tokens_per_second", sa.Double),
        sa.Column("load_seconds", sa.Double, nullable=False),
        sa.Column("train_seconds", sa.Double, nullable=False),
        sa.Column("eval_seconds", sa.Double, nullable=False),
        sa.Column("row_sha256", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("pack_id", "attempt"),
    )
    op.create_table(
        "pack_steps",
        sa.Column("pack_id", sa.Text, nullable=False),
        sa.Column("attempt", sa.BigInteger, autoincrement=False, nullable=False),
        sa.Column("step", sa.BigInteger, autoincrement=False, nullable=False),
        sa.Column("num_steps", sa.BigInteger, nullable=False),
        sa.Column("num_tokens", sa.BigInteger, nullable=False),
        sa.Column("num_completion_tokens", sa.BigInteger, nullable=False),
        sa.Column("seconds", sa.Double, nullable=False),
        sa.Column("row_sha256", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("pack_id", "attempt", "step"),
    )
    op.create_table(
        "suites",
        sa.Column("suite_name", sa.Text, nullable=False),
        sa.Column("description", sa.Text, nullable=False),
        sa.Column("created_at", sa.Text, nullable=False),
        sa.Column("row_sha256", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("suite_name"),
    )
    op.create_table(
        "pack_environments",
        sa.Column("pack_id", sa.Text, nullable=False),
        sa.Column("attempt", sa.BigInteger, autoincrement=False, nullable=False),
        sa.Column("environment_id", sa.Text, nullable=False),
        sa.Column("row_sha256", sa.Text, nullable=False),
        sa.ForeignKeyConstraint(
            ["environment_id"],
            ["environments.environment_id"],
        ),
        sa.PrimaryKeyConstraint("pack_id", "attempt"),
    )
    op.create_table(
        "runs",
        sa.Column("experiment_id", sa.Text, nullable=False),
        sa.Column("attempt", sa.BigInteger, autoincrement=False, nullable=False),
        sa.Column("status", sa.Text, nullable=False, comment="running, completed, failed or stopped"),
        sa.Column("pack_id", sa.Text, nullable=False),
        sa.Column("engine", sa.Text, nullable=False),
        sa.Column("run_folder", sa.Text, nullable=False),
        sa.Column("started_at", sa.Text, nullable=False),
        sa.Column("finished_at", sa.Text),
        sa.Column("failure_kind", sa.Text),
        sa.Column("failure_message", sa.Text),
        sa.Column("traceback", sa.Text),
        sa.Column("adapter_path", sa.Text, comment="relative to the run folder"),
        sa.Column("num_steps", sa.BigInteger),
        sa.Column("row_sha256", sa.Text, nullable=False),
        sa.ForeignKeyConstraint(
            ["experiment_id"],
            ["experiments.experiment_id"],
        ),
        sa.PrimaryKeyConstraint("experiment_id", "attempt"),
    )
    op.create_index("runs_by_pack", "runs", ["pack_id", "attempt"], unique=False)
    op.create_table(
        "suite_experiments",
        sa.Column("suite_name", sa.Text, nullable=False),
        sa.Column("experiment_id", sa.Text, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("arm", sa.Text, nullable=False),
        sa.Column("experiment_type", sa.Text, nullable=False),
        sa.Column("position", sa.BigInteger, nullable=False),
        sa.Column("row_sha256", sa.Text, nullable=False),
        sa.ForeignKeyConstraint(
            ["experiment_id"],
            ["experiments.experiment_id"],
        ),
        sa.ForeignKeyConstraint(
            ["suite_name"],
            ["suites.suite_name"],
        ),
        sa.PrimaryKeyConstraint("suite_name", "experiment_id"),
    )
    op.create_table(
        "generations",
        sa.Column("experiment_id", sa.Text, nullable=False),
        sa.Column("attempt", sa.BigInteger, autoincrement=False, nullable=False),
        sa.Column("position", sa.BigInteger, autoincrement=False, nullable=False),
        sa.Column("prompt", sa.Text, nullable=False),
        sa.Column("reference", sa.Text, nullable=False),
        sa.Column("answer", sa.Text, nullable=False),
        sa.Column("row_sha256", sa.Text, nullable=False),
        sa.ForeignKeyConstraint(
            ["experiment_id", "attempt"],
            ["runs.experiment_id", "runs.attempt"],
        ),
        sa.PrimaryKeyConstraint("experiment_id", "attempt", "position"),
    )
    op.create_table(
        "profiles",
        sa.Column("experiment_id", sa.Text, nullable=False),
        sa.Column("attempt", sa.BigInteger, autoincrement=False, nullable=False),
        sa.Column("num_trainable_parameters", sa.BigInteger, nullable=False),
        sa.Column("num_total_parameters", sa.BigInteger, nullable=False),
        sa.Column("adapter_bytes", sa.BigInteger, nullable=False),
        sa.Column("memory_kind", sa.Text, nullable=False),
        sa.Column("peak_memory_bytes", sa.BigInteger),
        sa.Column("step_seconds", sa.Double),
        sa.Column("tokens_per_second", sa.Double),
        sa.Column("row_sha256", sa.Text, nullable=False),
        sa.ForeignKeyConstraint(
            ["experiment_id", "attempt"],
            ["runs.experiment_id", "runs.attempt"],
        ),
        sa.PrimaryKeyConstraint("experiment_id", "attempt"),
    )
    op.create_table(
        "scores",
        sa.Column("experiment_id", sa.Text, nullable=False),
        sa.Column("attempt", sa.BigInteger, autoincrement=False, nullable=False),
        sa.Column("split", sa.Text, nullable=False),
        sa.Column("metric", sa.Text, nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("unit", sa.Text, nullable=False),
        sa.Column("value", sa.Double, nullable=False),
        sa.Column("num_items", sa.BigInteger, nullable=False),
        sa.Column("row_sha256", sa.Text, nullable=False),
        sa.ForeignKeyConstraint(
            ["experiment_id", "attempt"],
            ["runs.experiment_id", "runs.attempt"],
        ),
        sa.PrimaryKeyConstraint("experiment_id", "attempt", "split", "metric"),
    )
    op.create_table(
        "steps",
        sa.Column("experiment_id", sa.Text, nullable=False),
        sa.Column("attempt", sa.BigInteger, autoincrement=False, nullable=False),
        sa.Column("step", sa.BigInteger, autoincrement=False, nullable=False),
        sa.Column("loss", sa.Double),
        sa.Column("learning_rate", sa.Double, nullable=False),
        sa.Column("grad_norm", sa.Double),
        sa.Column("row_sha256", sa.Text, nullable=False),
        sa.ForeignKeyConstraint(
            ["experiment_id", "attempt"],
            ["runs.experiment_id", "runs.attempt"],
        ),
        sa.PrimaryKeyConstraint("experiment_id", "attempt", "step"),
    )
    op.create_table(
        "score_items",
        sa.Column("experiment_id", sa.Text, nullable=False),
        sa.Column("attempt", sa.BigInteger, autoincrement=False, nullable=False),
        sa.Column("split", sa.Text, nullable=False),
        sa.Column("metric", sa.Text, nullable=False),
        sa.Column("items", sa.Text, nullable=False, comment="JSON: one number per item"),
        sa.Column("weights", sa.Text, comment="JSON: one whole number per item; NULL where all are one"),
        sa.Column("row_sha256", sa.Text, nullable=False),
        sa.ForeignKeyConstraint(
            ["experiment_id", "attempt", "split", "metric"],
            ["scores.experiment_id", "scores.attempt", "scores.split", "scores.metric"],
        ),
        sa.PrimaryKeyConstraint("experiment_id", "attempt", "split", "metric"),
    )
