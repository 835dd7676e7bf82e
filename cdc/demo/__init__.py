"""A source, three targets and a workload on this machine, to see the pipeline at work."""
