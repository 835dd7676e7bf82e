"""Generations of a target: the tables that people read, and those that are being loaded to take their place.

What a target holds is a row of ``cdc.target`` (and rows of ``cdc.target_table``) whose key is the pipeline's name.
While a target that already holds data is loaded again, a second generation stands beside: rows in the same database
under a key of its own, with a fence and a position of their own, and tables in schemas of their own
(`cdc.routing.target_routes`). Nobody who asks for the pipeline meets it by accident, and what keeps one generation
right (fence, position, history) keeps the other right, too. In the end the two are swapped, and the key is gone.
"""

from __future__ import annotations

_MARK = "+"
"""Ends the key of a generation that is loaded beside another; no pipeline's name can hold it (`cdc.config.model`)."""


def generation_key(pipeline: str) -> str:
    """The key of the generation that is loaded beside the one that the pipeline streams to."""
    return pipeline + _MARK


def pipeline_of(key: str) -> str:
    """The pipeline that a key belongs to: heartbeats and slots carry its name, whichever generation reads them."""
    return key.removesuffix(_MARK)
