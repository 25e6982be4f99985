"""The ensemble: members and weights, spread to uncertainty, prediction, and its use by engines."""
