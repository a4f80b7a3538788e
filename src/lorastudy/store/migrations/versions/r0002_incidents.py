"""What befell a pack, and what its checkpoints cost."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Create two tables; those that are there keep their columns, and so the hashes of their rows."""
    op.create_table(
        "incidents",
        sa.Column("pack_id", sa.Text, nullable=False),
        sa.Column("attempt", sa.BigInteger, autoincrement=False, nullable=False),
        sa.Column("position", sa.BigInteger, autoincrement=False, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("step", sa.BigInteger),
        sa.Column("message", sa.Text, nullable=False),
        sa.Column("row_sha256", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("pack_id", "attempt", "position"),
    )
    op.create_table(
        "checkpoint_profiles",
        sa.Column("pack_id", sa.Text, nullable=False),
        sa.Column("attempt", sa.BigInteger, autoincrement=False, nullable=False),
        sa.Column("num_checkpoints", sa.BigInteger, nullable=False),
        sa.Column("last_bytes", sa.BigInteger, nullable=False),
        sa.Column("seconds", sa.Double, nullable=False),
        sa.Column("row_sha256", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("pack_id", "attempt"),
    )
