"""Alembic runs this for each upgrade. The caller owns the connection and its transaction."""

from alembic import context

from lorastudy.store.schema import VERSION_TABLE, metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table=VERSION_TABLE,
    # true for SQLite as we open it: we send BEGIN ourselves, so the driver cannot withhold it before DDL
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
