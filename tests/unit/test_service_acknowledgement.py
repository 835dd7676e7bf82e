"""What a slot is told is the minimum of what its targets hold, and no more than that while it is held."""

from __future__ import annotations

from cdc.config import Config
from cdc.lsn import Lsn
from cdc.observe.metrics import Metrics
from cdc.service.acknowledgement import Acknowledgement
from cdc.service.delivery import Delivery
from cdc.service.heartbeats import Heartbeats

CONFIG = Config.model_validate(
    {
        "source": {"dsn": "postgresql://x/y"},
        "targets": {name: {"dsn": "postgresql://x/z", "include": ["public.*"]} for name in ("a", "b")},
    }
)


def holding(name: str, lsn: int | None) -> Delivery:
    """A delivery whose target needs nothing before ``lsn``; `None`: that is not known."""
    delivery = Delivery(name, CONFIG, metrics=Metrics("cdc").target(name), heartbeats=Heartbeats())
    delivery._acknowledgeable = None if lsn is None else Lsn(lsn)
    return delivery


def test_the_slowest_target_counts_and_one_that_was_not_read_holds_everything() -> None:
    told = Acknowledgement()
    told.begin(Lsn(10))
    assert not told.advance([holding("a", 30), holding("b", None)])
    assert told.advance([holding("a", 30), holding("b", 20)])
    assert told.confirmed == 20


def test_it_never_goes_back_and_without_targets_it_stays() -> None:
    told = Acknowledgement()
    told.begin(Lsn(10))
    assert not told.advance([])
    assert not told.advance([holding("a", 5)])
    assert told.confirmed == 10


def test_a_target_that_can_only_be_loaded_again_holds_nothing() -> None:
    told, lost = Acknowledgement(), holding("b", None)
    lost.health.state = "needs resync"
    assert told.advance([holding("a", 30), lost])
    assert told.confirmed == 30


def test_while_it_is_held_it_stays_also_through_another_stream() -> None:
    told = Acknowledgement()
    told.begin(Lsn(10))
    assert told.hold() == 10
    assert not told.advance([holding("a", 30)])
    told.begin(Lsn(8))
    assert told.advance([holding("a", 30)])
    assert told.confirmed == 10
    told.release()
    assert told.advance([holding("a", 30)])
    assert told.confirmed == 30
