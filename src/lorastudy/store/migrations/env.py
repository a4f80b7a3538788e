"""Run by alembic for each upgrade. The connection, and its transaction, belong to the caller."""

from alembic import context

from lorastudy.store.schema import VERSION_TABLE, metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table=VERSION_TABLE,
    # true for SQLite as we open it: BEGIN is sent by us and not withheld by the driver before DDL
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
