"""Hold the life of a version in the database: reasons of a rejection, and which state follows which."""

from __future__ import annotations

from alembic import op

revision = "0005_states"
down_revision = "0004_signatures"
branch_labels = None
depends_on = None

FUNCTION = """
CREATE OR REPLACE FUNCTION adapter_versions_transition() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF (OLD.state, NEW.state) NOT IN (
        ('registered', 'validated'), ('registered', 'rejected'),
        ('validated', 'retired'), ('rejected', 'retired'), ('retired', 'validated')
    ) THEN
        RAISE check_violation USING
            MESSAGE = format('a version that is %s cannot become %s', OLD.state, NEW.state),
            CONSTRAINT = 'ck_adapter_versions_transition', TABLE = 'adapter_versions';
    END IF;
    RETURN NEW;
END $$
"""
TRIGGER = """
CREATE TRIGGER ck_adapter_versions_transition BEFORE UPDATE OF state ON adapter_versions
FOR EACH ROW WHEN (OLD.state IS DISTINCT FROM NEW.state) EXECUTE FUNCTION adapter_versions_transition()
"""


def upgrade() -> None:
    op.create_check_constraint(
        op.f("ck_adapter_versions_rejected"),
        "adapter_versions",
        "CASE state WHEN 'rejected' THEN rejection_reasons <> '[]' WHEN 'retired' THEN true "
        "ELSE rejection_reasons = '[]' END",
    )
    op.execute(FUNCTION)
    op.execute(TRIGGER)


def downgrade() -> None:
    op.execute("DROP TRIGGER ck_adapter_versions_transition ON adapter_versions")
    op.execute("DROP FUNCTION adapter_versions_transition()")
    op.drop_constraint(op.f("ck_adapter_versions_rejected"), "adapter_versions", type_="check")
