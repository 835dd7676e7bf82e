"""`cdc`: change data capture from one PostgreSQL to several, transaction by transaction, exactly once."""
