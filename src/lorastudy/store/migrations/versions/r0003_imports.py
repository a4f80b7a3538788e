"""Results from elsewhere, in tables of their own."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Create the tables of imports and of the results that they brought."""
    op.create_table(
        "imports",
        sa.Column("import_id", sa.Text, nullable=False),
        sa.Column("suite_name", sa.Text, nullable=False),
        sa.Column("tool", sa.Text, nullable=False, comment="what made the file"),
        sa.Column("file", sa.Text, nullable=False),
        sa.Column("file_sha256", sa.Text, nullable=False),
        sa.Column("imported_at", sa.Text, nullable=False),
        sa.Column("row_sha256", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("import_id"),
    )
    op.create_table(
        "imported_results",
        sa.Column("result_id", sa.Text, nullable=False),
        sa.Column("import_id", sa.Text, nullable=False),
        sa.Column("position", sa.BigInteger, nullable=False, comment="in the order of import"),
        sa.Column(
            "location",
            sa.Text,
            nullable=False,
            comment="the file, with the line where it has several results",
        ),
        sa.Column("arm", sa.Text, nullable=False),
        sa.Column("seed", sa.BigInteger, comment="NULL where it was not recorded"),
        sa.Column("config", sa.Text, nullable=False, comment="JSON: settings and sources"),
        sa.Column("scores", sa.Text, nullable=False, comment="JSON: a list, the primary metric first"),
        sa.Column("costs", sa.Text, nullable=False, comment="JSON: a mapping"),
        sa.Column("row_sha256", sa.Text, nullable=False),
        sa.ForeignKeyConstraint(["import_id"], ["imports.import_id"]),
        sa.PrimaryKeyConstraint("result_id"),
    )
