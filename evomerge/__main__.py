"""`python -m evomerge`."""

import os

from evomerge.cli import main
from evomerge.signals import WITH_PARENT, end_with_parent

if __name__ == "__main__":
    if os.environ.pop(WITH_PARENT, None):
        end_with_parent()
    main()
