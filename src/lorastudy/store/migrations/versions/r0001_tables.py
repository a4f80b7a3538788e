"""The tables of the first release: where every later revision starts.

It creates nothing. A new store gets the tables of `schema.py` as they are, and only a store of an earlier revision
is migrated. `tests/unit/store/stores/r0001.sql` is a store of this revision, so it holds these tables for good.
"""

revision = "r0001"
down_revision = None


def upgrade() -> None:
    """Do nothing: the tables are there."""
