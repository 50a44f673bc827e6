"""Alembic's environment; `registry.migrate` runs it."""
