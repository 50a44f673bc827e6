"""The migrations make exactly the tables that the models describe, from any number of processes at once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import CheckConstraint, create_engine, inspect, text

from registry import migrate
from registry.errors import SchemaUnknown, StoreUnavailable
from registry.models import Table
from registry.store.database import parse_url


def test_models_are_what_migrations_make(database_url):
    engine = create_engine(parse_url(database_url))
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_server_default": True})
        assert compare_metadata(context, Table.metadata) == []
        # Alembic does not compare these.
        for table in Table.metadata.sorted_tables:
            expected = {check.name for check in table.constraints if isinstance(check, CheckConstraint)}
            assert {check["name"] for check in inspect(connection).get_check_constraints(table.name)} == expected
    engine.dispose()


def test_every_constraint_has_a_name():
    for table in Table.metadata.sorted_tables:
        assert all(constraint.name for constraint in table.constraints), table.name


def test_processes_that_migrate_at_once_wait_for_each_other(empty_database_url, connect_to):
    with ThreadPoolExecutor() as threads:
        list(threads.map(migrate.upgrade, [empty_database_url] * 4))
    with connect_to(empty_database_url) as connection:
        assert connection.execute("SELECT count(*), max(revision) FROM registry_head").fetchone() == (1, 0)


def test_going_back_leaves_nothing(empty_database_url):
    migrate.upgrade(empty_database_url)
    engine = create_engine(parse_url(empty_database_url))
    with engine.begin() as connection:
        config = migrate.make_config()
        config.attributes["connection"] = connection
        command.downgrade(config, "base")
        assert inspect(connection).get_table_names() == ["alembic_version"]
    engine.dispose()


def test_a_database_of_a_newer_release_is_refused_and_left_alone(database_url, connect_to):
    with connect_to(database_url) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(SchemaUnknown, match="9999"):
        migrate.upgrade(database_url)
    with connect_to(database_url) as connection:
        assert connection.execute("SELECT version_num FROM alembic_version").fetchone() == ("9999",)


def test_a_server_that_is_not_there_is_said():
    with pytest.raises(StoreUnavailable):
        migrate.upgrade("postgresql://localhost:1/nothing")


def test_stores_have_ids_of_their_own(empty_database_url):
    found = set()
    for _ in range(2):
        migrate.upgrade(empty_database_url)
        engine = create_engine(parse_url(empty_database_url))
        with engine.begin() as connection:
            found.add(connection.execute(text("SELECT store_id FROM registry_head")).scalar_one())
            config = migrate.make_config()
            config.attributes["connection"] = connection
            command.downgrade(config, "base")
        engine.dispose()
    assert len(found) == 2
