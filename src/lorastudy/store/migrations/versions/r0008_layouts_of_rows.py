"""What laid the rows out, what a chat template adds by itself, and answers that are too long for exact match."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    """Add columns; of runs that are there nobody recorded this."""
    for column in (
        sa.Column("layout", sa.Text, comment="chat, alpaca, plain or text: what laid the rows out"),
        sa.Column("num_fallback_rows", sa.BigInteger),
        sa.Column("template_preamble", sa.Text),
        sa.Column("template_date", sa.Text),
        sa.Column("num_asked_rows", sa.BigInteger),
        sa.Column("num_long_answers", sa.BigInteger),
    ):
        op.add_column("data_summaries", column)
