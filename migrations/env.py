"""Runs the migrations: on the connection that `registry.migrate` brings, or from alembic's own command line.

DATABASE_URL=postgresql://… alembic upgrade head | check | revision --autogenerate -m "…"
"""

from __future__ import annotations

from alembic import context
from sqlalchemy import Connection, create_engine

from registry.models import Table
from registry.settings import read_settings
from registry.store.database import parse_url


def run(connection: Connection) -> None:
    """Runs what the command asks for in one transaction."""
    context.configure(connection=connection, target_metadata=Table.metadata, compare_server_default=True)
    with context.begin_transaction():
        context.run_migrations()


given = context.config.attributes.get("connection")
if given is not None:
    run(given)
else:
    engine = create_engine(parse_url(read_settings().database_url))
    with engine.connect() as connection:
        run(connection)
    engine.dispose()
