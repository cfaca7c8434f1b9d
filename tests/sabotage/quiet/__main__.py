"""As a package, so that none of its processes imports it, and the steps with it, before pytest does."""

import sys

from tests.sabotage.quiet import main

if __name__ == "__main__":
    sys.exit(main())
