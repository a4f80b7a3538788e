"""Which row of which split a stored answer is for."""

import sqlalchemy as sa
from alembic import op

revision = "r0005"
down_revision = "r0004"


def upgrade() -> None:
    """Add two columns. Neither is known of the answers that are there."""
    op.add_column("generations", sa.Column("split", sa.Text))
    op.add_column("generations", sa.Column("row", sa.BigInteger))
