"""Whether a database holds together: its schema, and what the code promises beyond what the constraints enforce."""

from __future__ import annotations

import sqlalchemy
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from registry import migrate
from registry.models import Table
from registry.store.database import parse_url, translate

# Each finds what must not be there; a row is one finding.
PROMISES: dict[str, str] = {
    "the head row is missing": "SELECT 'registry_head' WHERE NOT EXISTS (SELECT FROM registry_head)",
    "a revision has no audit entry, the first is": """
        SELECT r FROM registry_head, generate_series(1, revision) r
        LEFT JOIN audit_entries a ON a.revision = r WHERE a.revision IS NULL ORDER BY r LIMIT 1""",
    "an event has a revision that the head has not reached": """
        SELECT e.revision FROM events e, registry_head h WHERE e.revision > h.revision""",
    "the weights of an alias do not sum to 10000": """
        SELECT adapter || '@' || alias FROM aliases LEFT JOIN alias_targets t USING (adapter, alias)
        GROUP BY adapter, alias HAVING coalesce(sum(t.weight) FILTER (WHERE NOT t.shadow), 0) <> 10000""",
    "an alias's history does not end where it points": """
        SELECT adapter || '@' || alias FROM aliases a WHERE NOT EXISTS (
            SELECT FROM alias_targets t JOIN LATERAL (
                SELECT after FROM alias_changes c WHERE (c.adapter, c.alias) = (a.adapter, a.alias)
                ORDER BY revision DESC LIMIT 1
            ) last ON last.after @> jsonb_build_array(jsonb_build_object('version', t.version, 'weight', t.weight))
            WHERE (t.adapter, t.alias) = (a.adapter, a.alias))""",
    "the version numbers of an adapter have gaps": """
        SELECT name FROM adapters LEFT JOIN adapter_versions v ON v.adapter = name
        GROUP BY name, latest_version HAVING count(v.number) <> latest_version
            OR coalesce(max(v.number), 0) <> latest_version""",
}
# One fault may have many findings; the first say enough.
MAX_FINDINGS = 5


def find_faults(url: str) -> list[str]:
    """Sentences, none when all is well; blocking and read-only. Raises StoreUnavailable."""
    engine = sqlalchemy.create_engine(parse_url(url), connect_args={"connect_timeout": 5})
    try:
        with engine.begin() as connection:
            connection.execute(sqlalchemy.text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY"))
            return _schema_faults(connection) or _broken_promises(connection)
    except sqlalchemy.exc.SQLAlchemyError as error:
        raise translate(error) from error
    finally:
        engine.dispose()


def _schema_faults(connection: sqlalchemy.Connection) -> list[str]:
    context = MigrationContext.configure(connection, opts={"compare_server_default": True})
    expected = ScriptDirectory.from_config(migrate.make_config()).get_current_head()
    found = context.get_current_revision()
    if found != expected:
        return [f"expected the schema {expected}, found {found or 'none'}; `registry db upgrade` brings it there"]
    return [f"the schema differs: {difference}" for difference in compare_metadata(context, Table.metadata)]


def _broken_promises(connection: sqlalchemy.Connection) -> list[str]:
    faults = []
    for sentence, query in PROMISES.items():
        found = [str(one) for one in connection.scalars(sqlalchemy.text(query)).fetchmany(MAX_FINDINGS)]
        if found:
            faults.append(f"{sentence}: {', '.join(found)}")
    return faults
