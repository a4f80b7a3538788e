"""Scores during training with their step and time, and which step of a run was selected."""

import sqlalchemy as sa
from alembic import op

revision = "r0003"
down_revision = "r0002"


def upgrade() -> None:
    """Add two columns to both tables. None is known of the runs that are there."""
    op.add_column("scores", sa.Column("step", sa.BigInteger))
    op.add_column("scores", sa.Column("train_seconds", sa.Double))
    op.add_column("runs", sa.Column("num_planned_steps", sa.BigInteger))
    op.add_column("runs", sa.Column("selected_step", sa.BigInteger))
