"""`python -m dagger_nb.tasks.validate [--jobs N]`: make the committed verdicts, going on where it stopped.

Only a command; to import, take `dagger_nb.tasks.verdicts`.
"""

from __future__ import annotations

import sys

from dagger_nb.tasks.verdicts import main

if __name__ == "__main__":
    sys.exit(main())
