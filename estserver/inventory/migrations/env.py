"""Run by alembic inside the caller's transaction; there is no configuration file and no other way to run it."""

from alembic import context

from estserver.inventory.schema import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata, render_as_batch=True)
context.run_migrations()
