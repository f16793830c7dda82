"""`python -m dagger_nb` is `dagger-nb`."""

import sys

from dagger_nb.cli import main

sys.exit(main())
