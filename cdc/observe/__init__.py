"""What an operator sees: logs, metrics and the model of a status."""
