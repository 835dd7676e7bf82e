"""PostgreSQL's own subscription: no initial copy, and otherwise as it comes (it commits asynchronously).

With several targets there is a subscription, and a slot, for each of them; each makes the source decode its WAL again.
"""

from __future__ import annotations

from cdc.identifiers import quote, quote_list, quote_literal
from tests.bench.figures import Kind
from tests.bench.readers import Task, execute, wait_until_free, wait_until_streaming


class SubscriptionReader:
    """Subscriptions, binary or text. All of one source share a publication."""

    pid = None

    def __init__(self, task: Task) -> None:
        self._task = task
        # Subscription and slot are named like the target database.
        self._slots = list(task.targets)

    def prepare(self) -> None:
        """Create publication, subscriptions and slots."""
        task = self._task
        execute(task.source_dsn, f"CREATE PUBLICATION {quote(task.name)} FOR TABLE {quote_list(task.tables)}")
        binary = "false" if task.contestant.kind is Kind.TEXT else "true"
        for target in task.targets:
            execute(
                task.target_dsn(target),
                f"CREATE SUBSCRIPTION {quote(target)} CONNECTION {quote_literal(task.reach_source())} "
                f"PUBLICATION {quote(task.name)} "
                f"WITH (enabled = false, create_slot = true, copy_data = false, binary = {binary})",
            )

    def start(self, until: str) -> None:
        """Enable them. What the first reads before the last one streams is to the subscriptions' advantage."""
        for target in self._task.targets:
            execute(self._task.target_dsn(target), f"ALTER SUBSCRIPTION {quote(target)} ENABLE")
        wait_until_streaming(self._task.servers, self._slots, self)

    def has_read_all(self) -> bool:
        """The targets show it."""
        return False

    def check(self) -> None:
        """A subscription that fails starts again; what it says is in the target's log."""

    def stop(self) -> None:
        """Disable them."""
        for target in self._task.targets:
            execute(self._task.target_dsn(target), f"ALTER SUBSCRIPTION {quote(target)} DISABLE")
        wait_until_free(self._task.servers, self._slots)

    def remove(self) -> None:
        """Drop subscriptions, slots and publication."""
        for target in self._task.targets:
            execute(self._task.target_dsn(target), f"DROP SUBSCRIPTION {quote(target)}")
        execute(self._task.source_dsn, f"DROP PUBLICATION {quote(self._task.name)}")

    def abandon(self) -> None:
        """Its processes are the servers'."""
