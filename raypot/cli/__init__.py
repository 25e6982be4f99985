"""The command line, `raypot`: one file for each group of commands.

Nothing heavy is imported before a command runs, so that `raypot --help` answers at once.
"""

from raypot.cli.main import main

__all__ = ["main"]
