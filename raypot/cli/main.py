"""The `raypot` command: its sub-commands, and the one place where errors become exit codes."""

import errno
import os
import sys
import traceback
from typing import Any

import click

from raypot.cli.inspect import doctor_command, schema_command, template_command
from raypot.cli.prepare import data
from raypot.cli.train import train_command
from raypot.cli.tune import ensemble_command, tune_command
from raypot.cli.use import evaluate_command, predict_command, report_command
from raypot.errors import RaypotError

EXIT_BUG, EXIT_STORAGE, EXIT_INTERRUPTED = 70, 74, 130
DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EIO}
EXAMPLES = """
\b
Examples:
  raypot data import train.xyz molecules.zarr
  raypot tune search_spaces/quick.toml --data molecules.zarr --out study
  raypot ensemble study
  raypot evaluate study/ensemble.safetensors molecules.zarr
"""


# Threads that wait for work sleep; by default they spin, which on a busy machine makes commands up
# to ten times slower. OpenMP reads this when it is loaded, which no import above does.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


class ErrorBoundary(click.Group):
    """A group that prints a `RaypotError` as its message and exits with its code."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; an error that is no `RaypotError` is a bug and keeps its traceback."""
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except RaypotError as error:
            fail(str(error), error.exit_code)
        except KeyboardInterrupt:
            fail("interrupted", EXIT_INTERRUPTED)
        except OSError as error:
            if error.errno not in DISK_ERRORS:
                fail_with_traceback()
            place = error.filename or "output"
            fail(f"{place}: {error.strerror}; free space and repeat the command", EXIT_STORAGE)
        except Exception:
            fail_with_traceback()


def fail(message: str, exit_code: int) -> None:
    """Print `message` on stderr and leave with `exit_code`."""
    click.echo(f"error: {message}", err=True)
    sys.exit(exit_code)


def fail_with_traceback() -> None:
    """Show the current exception as the bug that it is."""
    traceback.print_exc()
    fail("this is a bug of raypot; please report the lines above", EXIT_BUG)


@click.group(
    cls=ErrorBoundary,
    epilog=EXAMPLES,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(package_name="raypot")
def main() -> None:
    """Turn quantum-chemistry data into a calibrated ensemble of interatomic potentials."""


for command in (
    data,
    train_command,
    tune_command,
    ensemble_command,
    evaluate_command,
    predict_command,
    report_command,
    doctor_command,
    schema_command,
    template_command,
):
    main.add_command(command)
