"""``python -m crossroads.core.dispatch`` builds the optional compiled kernels."""

import sys

from crossroads.core.dispatch.native import SOURCE

if __name__ == "__main__":
    sys.exit(SOURCE.main("crossroads.core.dispatch"))
