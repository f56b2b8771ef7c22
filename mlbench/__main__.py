"""``python -m mlbench``."""

from mlbench.cli import entry

if __name__ == "__main__":
    entry()
