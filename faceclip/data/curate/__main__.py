"""The command of `faceclip.data.curate.command`."""

import sys

from faceclip.data.curate.command import main

if __name__ == "__main__":
    sys.exit(main())
