"""Alembic runs this for each upgrade. The caller owns the connection and its transaction."""

from alembic import context

from lorastudy.store.schema import VERSION_TABLE, metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table=VERSION_TABLE,
    # True for our SQLite connections: we send BEGIN ourselves, so the driver cannot delay it past DDL.
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
