"""A process that builds samples on demand: ``python -m simulation.worker ROOT SETTINGS``.

It reads a line ``split index`` and answers ``done`` or ``failed <reason>``, until its input ends: so it never outlives
the process that started it, however that one ended.
"""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

from simulation.layouts import LAYOUTS, Settings, store
from simulation.scenes import draw_sample


def build(root: Path, settings: Settings, split: str, index: int) -> None:
    """Draw one sample and write its files. OSError where they can't be written."""
    layout = LAYOUTS[settings.layout]()
    sample = draw_sample(settings.seed, split, index, settings.image_size, layout.has_audio)
    for name, content in zip(layout.files(settings, split, index), layout.contents(split, sample), strict=True):
        store(root, name, content)


def main() -> None:
    """Serve the lines of standard input."""
    for stop in (signal.SIGINT, signal.SIGTERM):  # sent to the whole group: the parent ends, which closes our input
        signal.signal(stop, signal.SIG_IGN)
    root, settings = Path(sys.argv[1]), Settings(**json.loads(sys.argv[2]))
    for line in sys.stdin:
        split, index = line.split()
        try:
            build(root, settings, split, int(index))
        except OSError as error:
            print(f"failed {error}", flush=True)
            return
        print("done", flush=True)


if __name__ == "__main__":
    main()
