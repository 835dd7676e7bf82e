"""`cdc`: change data capture from one PostgreSQL to several, transaction by transaction, exactly once."""

__version__ = "0.1.0"
