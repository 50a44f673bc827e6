"""Brings a database to the schema of this release. The steps themselves are in `migrations/`.

Several registries may start at once on one database: an advisory lock lets one of them migrate while the others wait,
and every step runs in one transaction, so a process that dies in the middle leaves the schema as it was.
"""

from __future__ import annotations

from pathlib import Path

import sqlalchemy
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.util import CommandError

import migrations
from registry.errors import SchemaUnknown
from registry.store.database import parse_url, translate

# Any number that nothing else in the database uses; this one spells "loraplex" in ASCII.
ADVISORY_LOCK = int.from_bytes(b"loraplex", "big")


def upgrade(url: str) -> None:
    """Migrates to the newest schema; blocking. Raises StoreUnavailable and SchemaUnknown."""
    engine = sqlalchemy.create_engine(parse_url(url), connect_args={"connect_timeout": 5})
    try:
        with engine.begin() as connection:
            connection.execute(sqlalchemy.select(sqlalchemy.func.pg_advisory_xact_lock(ADVISORY_LOCK)))
            config = make_config()
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
    except CommandError as error:
        raise SchemaUnknown(f"the database's schema is not known to this release: {error}") from error
    except sqlalchemy.exc.SQLAlchemyError as error:
        raise translate(error) from error
    finally:
        engine.dispose()


def known_revisions() -> list[str]:
    """Every schema that this release can bring to the newest one."""
    return [one.revision for one in ScriptDirectory.from_config(make_config()).walk_revisions()]


def make_config() -> Config:
    """Alembic's configuration, wherever the package is installed."""
    config = Config()
    # The option is subject to interpolation, where a % stands for itself only when it is doubled.
    config.set_main_option("script_location", str(Path(migrations.__file__).parent).replace("%", "%%"))
    return config
