"""The command line as ``python -m histoflow``."""

from histoflow.cli import main

if __name__ == "__main__":
    main()
