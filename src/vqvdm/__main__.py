"""`python -m vqvdm`: the command line, also as torchrun and accelerate start it (`torchrun -m -- vqvdm ...`)."""

from __future__ import annotations

import sys

from vqvdm.cli import main

if __name__ == "__main__":
    sys.exit(main())
