"""The life of a version: the table in the code and the rules in Postgres say the same about every pair of states."""

from __future__ import annotations

import itertools
import json

import psycopg
import pytest

from registry import states
from registry.errors import StateRefused, VersionNotRetired
from registry.resources import VersionState
from registry.store.database import connection_string

REJECTED_AND_RETIRED = (VersionState.REJECTED, VersionState.RETIRED)
PAIRS = [pair for pair in itertools.product(VersionState, repeat=2) if pair[0] != pair[1]]


@pytest.fixture
async def version(client, base_model, new_adapter):
    return (await client.register(new_adapter(1), adapter="sql", base_model=base_model)).version


async def test_code_and_database_agree_on_every_transition(registry_server, version):
    url = connection_string(registry_server.settings.database_url)
    with psycopg.connect(url, autocommit=True) as connection:
        for before, after in PAIRS:
            connection.execute("ALTER TABLE adapter_versions DISABLE TRIGGER USER")
            reasons = json.dumps(["why"] if before == VersionState.REJECTED else [])
            connection.execute("UPDATE adapter_versions SET state = %s, rejection_reasons = %s", (before, reasons))
            connection.execute("ALTER TABLE adapter_versions ENABLE TRIGGER USER")
            has_reasons = after == VersionState.REJECTED or (before, after) == REJECTED_AND_RETIRED
            kept = json.dumps(["why"] if has_reasons else [])
            try:
                connection.execute("UPDATE adapter_versions SET state = %s, rejection_reasons = %s", (after, kept))
                broken = ""
            except psycopg.errors.CheckViolation as error:
                broken = error.diag.constraint_name
            assert broken in ("", *states.RULES)
            assert (not broken) == (after in states.FOLLOWS[before]), (before, after)


async def test_reasons_come_with_a_rejection_and_with_nothing_that_can_be_promoted(registry_server, version):
    url = connection_string(registry_server.settings.database_url)
    with psycopg.connect(url, autocommit=True) as connection, pytest.raises(psycopg.errors.CheckViolation) as refused:
        connection.execute("""UPDATE adapter_versions SET rejection_reasons = '["why"]'""")
    assert refused.value.diag.constraint_name == "ck_adapter_versions_rejected"


async def test_every_rule_is_a_constraint_or_a_trigger_of_the_table(registry_server):
    url = connection_string(registry_server.settings.database_url)
    with psycopg.connect(url, autocommit=True) as connection:
        found = connection.execute(
            "SELECT conname FROM pg_constraint WHERE conrelid = 'adapter_versions'::regclass UNION "
            "SELECT tgname FROM pg_trigger WHERE tgrelid = 'adapter_versions'::regclass"
        ).fetchall()
    assert set(states.RULES) <= {name for (name,) in found}


async def test_what_was_rejected_is_not_brought_back_by_hand(registry_server, client, version):
    url = connection_string(registry_server.settings.database_url)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("ALTER TABLE adapter_versions DISABLE TRIGGER USER")
        connection.execute("""UPDATE adapter_versions SET state = 'rejected', rejection_reasons = '["why"]'""")
        connection.execute("ALTER TABLE adapter_versions ENABLE TRIGGER USER")
    with pytest.raises(VersionNotRetired):
        await client.unretire("sql", 1)
    assert (await client.retire("sql", 1)).state == VersionState.RETIRED
    with pytest.raises(StateRefused, match="cannot become validated"):
        await client.unretire("sql", 1)
