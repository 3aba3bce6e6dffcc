"""Runs `faceclip.data.curate.command` as `python -m faceclip.data.curate`."""

import sys

from faceclip.data.curate.command import main

if __name__ == "__main__":
    sys.exit(main())
