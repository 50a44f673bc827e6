"""Let a rejected version become validated, when it is registered again and passes its check."""

from __future__ import annotations

from alembic import op

revision = "0006_second_checks"
down_revision = "0005_states"
branch_labels = None
depends_on = None

FUNCTION = """
CREATE OR REPLACE FUNCTION adapter_versions_transition() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF (OLD.state, NEW.state) NOT IN (
        {pairs}
    ) THEN
        RAISE check_violation USING
            MESSAGE = format('a version that is %s cannot become %s', OLD.state, NEW.state),
            CONSTRAINT = 'ck_adapter_versions_transition', TABLE = 'adapter_versions';
    END IF;
    RETURN NEW;
END $$
"""
BEFORE = (
    "('registered', 'validated'), ('registered', 'rejected'), "
    "('validated', 'retired'), ('rejected', 'retired'), ('retired', 'validated')"
)


def upgrade() -> None:
    op.execute(FUNCTION.format(pairs=f"{BEFORE}, ('rejected', 'validated')"))


def downgrade() -> None:
    op.execute(FUNCTION.format(pairs=BEFORE))
