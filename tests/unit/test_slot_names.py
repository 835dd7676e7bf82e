"""The names of slots say whose they are."""

from __future__ import annotations

import pytest

from cdc.source.slot import lane_slot, load_slot, target_of, target_of_load


def test_a_lane_and_a_load_are_told_apart_by_their_names() -> None:
    assert target_of(lane_slot("cdc", "internal"), "cdc") == "internal"
    assert target_of_load(load_slot("cdc", "internal"), "cdc") == "internal"
    assert target_of(load_slot("cdc", "internal"), "cdc") is None
    assert target_of_load(lane_slot("cdc", "internal"), "cdc") is None


def test_a_target_called_new_has_a_lane_like_any_other() -> None:
    assert (target_of("cdc__new", "cdc"), target_of_load("cdc__new", "cdc")) == ("new", None)
    assert (target_of("cdc__new__new", "cdc"), target_of_load("cdc__new__new", "cdc")) == (None, "new")


@pytest.mark.parametrize("name", ["cdc", "cdc_internal", "other__internal", "cdc_bootstrap_12345678"])
def test_other_slots_are_no_lanes(name: str) -> None:
    assert target_of(name, "cdc") is None
    assert target_of_load(name, "cdc") is None
