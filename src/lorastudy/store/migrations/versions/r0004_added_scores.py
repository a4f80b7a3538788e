"""Scores that a later pass gives to stored adapters."""

import sqlalchemy as sa
from alembic import op

revision = "r0004"
down_revision = "r0003"


def upgrade() -> None:
    """Make the table. No earlier run has such scores."""
    op.create_table(
        "added_scores",
        sa.Column("experiment_id", sa.Text, primary_key=True),
        sa.Column("attempt", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("split", sa.Text, primary_key=True),
        sa.Column("metric", sa.Text, primary_key=True),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("unit", sa.Text, nullable=False),
        sa.Column("value", sa.Double),
        sa.Column("items", sa.Text, nullable=False),
        sa.Column("weights", sa.Text),
        sa.Column("failed_rows", sa.Text, nullable=False),
        sa.Column("source_sha256", sa.Text),
        sa.Column("row_sha256", sa.Text, nullable=False),
        sa.ForeignKeyConstraint(["experiment_id", "attempt"], ["runs.experiment_id", "runs.attempt"]),
    )
