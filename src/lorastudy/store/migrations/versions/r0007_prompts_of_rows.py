"""Which rows share a prompt, how rows were held out, and how many a run never read."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Add columns; of runs that are there nobody counted this."""
    for column in (
        sa.Column("num_unread_rows", sa.BigInteger),
        sa.Column("num_known_prompts", sa.BigInteger),
        sa.Column("num_near_copies", sa.BigInteger),
        sa.Column("num_compared_rows", sa.BigInteger),
        sa.Column("split_by", sa.Text, comment="prompt or row; NULL where the rows have a file of their own"),
        sa.Column(
            "groups",
            sa.Text,
            comment="JSON: for each row a number that rows of one prompt share; NULL where none do",
        ),
    ):
        op.add_column("data_summaries", column)
