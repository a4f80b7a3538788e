"""What each suite's file asked for, so that one which looks for its learning rates goes on without the file."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Add the table; of suites that are there nobody knows what their files said."""
    op.create_table(
        "suite_designs",
        sa.Column("suite_name", sa.Text, nullable=False),
        sa.Column("design", sa.Text, nullable=False, comment="JSON: the arms with their settings and seeds"),
        sa.Column("row_sha256", sa.Text, nullable=False),
        sa.ForeignKeyConstraint(["suite_name"], ["suites.suite_name"]),
        sa.PrimaryKeyConstraint("suite_name"),
    )
