"""``python -m crossroads.core.dispatch`` builds the optional compiled kernels."""

import sys

from crossroads.core.dispatch.native import build

if __name__ == "__main__":
    sys.stdout.write(f"{build()}\n")
