"""`python -m raypot.cli` is the `raypot` command."""

from raypot.cli.main import main

main(prog_name="raypot")
