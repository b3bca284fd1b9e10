"""Which version of the toolkit this is; ``pyproject.toml`` takes it from here, and every checkpoint keeps it."""

import subprocess
from contextlib import suppress
from functools import cache
from pathlib import Path

VERSION = "0.1.0"


@cache
def commit() -> str | None:
    """Return the commit of this copy of the toolkit, behind it ``-dirty`` where files differ; None outside of git."""
    folder = Path(__file__).resolve().parent.parent
    if not (folder / ".git").exists():  # installed: the next folder above may be anybody's repository
        return None
    with suppress(OSError):  # there is no git
        command = ["git", "describe", "--always", "--dirty"]
        return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False).stdout.strip() or None
    return None
