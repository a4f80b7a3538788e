"""What was predicted of each run before it was measured."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the table; runs from before it have no row there."""
    op.create_table(
        "predictions",
        sa.Column("experiment_id", sa.Text, nullable=False),
        sa.Column("attempt", sa.BigInteger, nullable=False, autoincrement=False),
        sa.Column("memory_kind", sa.Text, nullable=False),
        sa.Column("num_tokens", sa.BigInteger, nullable=False, comment="of the largest micro-batch"),
        sa.Column("num_labels", sa.BigInteger, nullable=False),
        sa.Column("alone_bytes", sa.BigInteger, nullable=False, comment="the sum of the terms below"),
        sa.Column("pack_bytes", sa.BigInteger, nullable=False),
        sa.Column("step_seconds", sa.Double, comment="of the whole pack; NULL without a calibration"),
        sa.Column("base_weights", sa.BigInteger, nullable=False),
        sa.Column("quantisation_constants", sa.BigInteger, nullable=False),
        sa.Column("adapters", sa.BigInteger, nullable=False),
        sa.Column("gradients", sa.BigInteger, nullable=False),
        sa.Column("optimizer", sa.BigInteger, nullable=False),
        sa.Column("activations", sa.BigInteger, nullable=False),
        sa.Column("loss", sa.BigInteger, nullable=False),
        sa.Column("workspace", sa.BigInteger, nullable=False),
        sa.Column("allocator_slack", sa.BigInteger, nullable=False),
        sa.Column("row_sha256", sa.Text, nullable=False),
        sa.ForeignKeyConstraint(["experiment_id", "attempt"], ["runs.experiment_id", "runs.attempt"]),
        sa.PrimaryKeyConstraint("experiment_id", "attempt"),
    )
