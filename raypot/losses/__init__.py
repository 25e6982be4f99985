"""Loss terms, their weights over time, and the same errors as metrics."""
