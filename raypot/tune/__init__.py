"""Search over run files with ranges: the space, the study on disk, and the trials that fill it."""
