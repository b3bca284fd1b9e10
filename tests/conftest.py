import os
import sys
from pathlib import Path

# Before torch is imported: tests run side by side, and threads that wait for each other's cores take ten times as long.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["MPLBACKEND"] = "Agg"

import pytest

TESTS = Path(__file__).resolve().parent
REPOSITORY = TESTS.parent
for folder in (TESTS, REPOSITORY):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


@pytest.fixture(scope="session")
def samples_dir() -> Path:
    """Small real files that lie beside the repository on a developer's machine."""
    folder = REPOSITORY.parent / "shared" / "samples"
    if not folder.is_dir():
        pytest.skip(f"the real samples are not here ({folder})")
    return folder


@pytest.fixture
def run_cli(monkeypatch, capsys):
    """Run a script's ``main`` as the shell would, in this process: returns (exit code, what it printed, its errors)."""
    from errors import run_script

    def run(main, *arguments):
        monkeypatch.setattr(sys, "argv", [f"{main.__module__}.py", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            run_script(main)
        printed = capsys.readouterr()
        return stopped.value.code, printed.out, printed.err

    return run


@pytest.fixture(scope="session")
def rooms(tmp_path_factory) -> Path:
    """Twelve simulated rooms to train on, in BatVision V2's format."""
    import simulation

    folder = tmp_path_factory.mktemp("rooms") / "rooms"
    simulation.write_dataset(folder, train=12, val=4, test=6, image_size=32, seed=0, workers=1, progress=False)
    return folder
