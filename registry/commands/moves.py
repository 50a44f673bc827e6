"""How a command ends that moved an alias: it says where it points, and waits for the fleet when it is to."""

from __future__ import annotations

from typing import TYPE_CHECKING

from registry.fleet import WorkerStanding, wait_until_served
from registry.printing import targets, worker_progress
from registry.resources import Alias

if TYPE_CHECKING:
    from registry.answers import MovedAlias
    from registry.options import Session


async def tell_moved(session: Session, moved: MovedAlias, *, dry_run: bool, wait_s: float | None) -> None:
    """Writes what changed. Waits until every live worker serves it, for at most `wait_s` if that is given.

    Raises what `wait_until_served` raises.
    """
    if not session.printer.writes_documents:
        session.printer.line(moved_line(moved.alias, changed=moved.changed, dry_run=dry_run))
    serving: list[WorkerStanding] = []
    if wait_s is not None:
        base_model = (await session.client.get_adapter(moved.alias.adapter)).base_model
        with worker_progress() as progress:
            serving = await wait_until_served(
                session.client, moved.alias, base_model=base_model, timeout_s=wait_s, on_change=progress
            )
    if session.printer.writes_documents:
        document = {
            "alias": moved.alias,
            "before": list(moved.before),
            "revision": moved.revision,
            "changed": moved.changed,
        }
        session.printer.document(document | ({} if wait_s is None else {"workers": serving}))
    elif wait_s is not None:
        workers = ", ".join(one.worker for one in serving)
        session.printer.line(f"served by {workers}" if serving else "no live worker runs its base model")


def moved_line(alias: Alias, *, changed: bool, dry_run: bool) -> str:
    """Where an alias points now, or would."""
    where = f"{alias.adapter}@{alias.alias}"
    if not changed:
        return f"{where} already points at version {targets(alias.targets)}"
    return f"{where} {'would point' if dry_run else 'now points'} at version {targets(alias.targets)}"
