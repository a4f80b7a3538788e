"""The layers that an experiment adapts, what its rows leave out, what trivial predictors score, and how sure its time is."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    """Add columns and a table; of runs that are there nobody counted or measured this."""
    for column in (
        sa.Column(
            "modules_by_role",
            sa.Text,
            comment="JSON: role -> number of adapted layers; NULL where not counted",
        ),
        sa.Column("modules_left_out", sa.Text, comment="JSON: what the preset means and PEFT cannot adapt"),
        sa.Column("modules_digest", sa.Text, comment="equal for experiments that adapt the same layers"),
        sa.Column("num_timed_steps", sa.BigInteger),
        sa.Column("step_quartile_distance_seconds", sa.Double),
        sa.Column(
            "step_times_apart", sa.Double, comment="share by which two measurements of the arm differed"
        ),
    ):
        op.add_column("profiles", column)
    for column in (
        sa.Column("num_compared_with", sa.BigInteger),
        sa.Column("num_known_rows", sa.BigInteger),
        sa.Column(
            "unused_columns",
            sa.Text,
            comment="JSON: columns of the file that hold something and play no part",
        ),
        sa.Column(
            "unseen_fields", sa.Text, comment="JSON: fields of messages of which the text shows nothing"
        ),
        sa.Column("num_texts", sa.BigInteger),
    ):
        op.add_column("data_summaries", column)
    op.create_table(
        "trivial_scores",
        sa.Column("pack_id", sa.Text, nullable=False),
        sa.Column("attempt", sa.BigInteger, nullable=False, autoincrement=False),
        sa.Column("split", sa.Text, nullable=False),
        sa.Column("predictor", sa.Text, nullable=False, comment="constant, frequencies or unigram"),
        sa.Column("metric", sa.Text, nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("unit", sa.Text, nullable=False),
        sa.Column("value", sa.Double, nullable=False),
        sa.Column("items", sa.Text, nullable=False, comment="JSON: one number per item"),
        sa.Column("weights", sa.Text, comment="JSON: one whole number per item; NULL where all are one"),
        sa.Column("answer", sa.Text, comment="of the constant answer, where it is compared as a text"),
        sa.Column("row_sha256", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("pack_id", "attempt", "split", "predictor", "metric"),
    )
