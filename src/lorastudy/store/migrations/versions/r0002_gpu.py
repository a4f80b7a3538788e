"""Whether the algorithms of a run were deterministic, and the settings of CUDA's allocator of a pack."""

import sqlalchemy as sa
from alembic import op

revision = "r0002"
down_revision = "r0001"


def upgrade() -> None:
    """Add a column to both tables. Neither is known of the runs that are there."""
    op.add_column("environments", sa.Column("algorithms", sa.Text))
    op.add_column("pack_profiles", sa.Column("cuda_allocator", sa.Text))
