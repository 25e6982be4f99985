"""Fixtures of the ensemble's tests."""

from conftest_ensemble import mixed_file, silicon, world

__all__ = ["mixed_file", "silicon", "world"]
