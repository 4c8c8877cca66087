"""`python -m evenkeel`: the same as the command `evenkeel`."""

import sys

from .cli.main import main

sys.exit(main())
