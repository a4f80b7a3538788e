"""What each suite asks, and when it said so."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Add the table; suites that are there stated no question, and none is made up for them."""
    op.create_table(
        "suite_questions",
        sa.Column("suite_name", sa.Text, nullable=False),
        sa.Column("number", sa.BigInteger, autoincrement=False, nullable=False),
        sa.Column("question_id", sa.Text, nullable=False),
        sa.Column(
            "question", sa.Text, nullable=False, comment="JSON: metric, margin, reference, seeds, splits"
        ),
        sa.Column("stated_at", sa.Text, nullable=False),
        sa.Column(
            "num_completed", sa.BigInteger, nullable=False, comment="experiments of the suite done by then"
        ),
        sa.Column("row_sha256", sa.Text, nullable=False),
        sa.ForeignKeyConstraint(["suite_name"], ["suites.suite_name"]),
        sa.PrimaryKeyConstraint("suite_name", "number"),
    )
