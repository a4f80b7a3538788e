"""Which layers an experiment adapts, by role."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    """Add columns; of runs that are there nobody counted this."""
    for column in (
        sa.Column(
            "modules_by_role",
            sa.Text,
            comment="JSON: role -> number of adapted layers; NULL where not counted",
        ),
        sa.Column("modules_left_out", sa.Text, comment="JSON: what the preset means and PEFT cannot adapt"),
        sa.Column("modules_digest", sa.Text, comment="equal for experiments that adapt the same layers"),
    ):
        op.add_column("profiles", column)
