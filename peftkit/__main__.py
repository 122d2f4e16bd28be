"""`python -m peftkit ...` is `peftkit ...`."""

import sys

from peftkit.cli.main import main

sys.exit(main())
