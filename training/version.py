"""Which version of the toolkit this is; ``pyproject.toml`` takes it from here, and every checkpoint keeps it."""

VERSION = "0.1.0"
