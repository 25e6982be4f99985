"""One self-contained HTML page about a study or a run.

It is made from what lies in the folder; the model predicts the test and the validation rows again
where the store is still there.
"""

from pathlib import Path

from raypot.durable import write_whole
from raypot.errors import MissingInput
from raypot.report.page import render
from raypot.report.run_page import run_page
from raypot.report.study_page import study_page


def write_report(folder: Path) -> Path:
    """Write `report.html` into a study or run folder and return its path.

    Args:
        folder: of a study or a run, finished or not.

    Raises:
        MissingInput: it is neither.
        MissingExtra: matplotlib or jinja2 is not installed.
        OutputError: the file cannot be created.
    """
    if (folder / "study.journal").is_file():
        page = study_page(folder)
    elif (folder / "run.toml").is_file():
        page = run_page(folder)
    else:
        raise MissingInput(
            f"{folder}: neither a study (study.journal) nor a run (run.toml); name the folder that "
            "raypot tune or raypot train wrote",
            path=str(folder),
        )
    path = folder / "report.html"
    write_whole(path, render(page).encode())
    return path
