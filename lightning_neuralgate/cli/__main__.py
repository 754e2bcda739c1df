"""Entry point of `python -m lightning_neuralgate.cli`."""

import sys

from lightning_neuralgate.cli import main

sys.exit(main())
