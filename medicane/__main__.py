"""``python -m medicane`` is the command ``medicane``."""

from medicane.cli import main

if __name__ == "__main__":
    main()
