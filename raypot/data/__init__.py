"""Raw files, the store, and what reads it: import, splits, targets, loader."""
