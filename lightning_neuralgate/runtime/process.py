"""Remarks of other libraries that are expected here and that nobody can act on."""

from __future__ import annotations

import logging
import warnings


def silence_known_noise() -> None:
    """Keep a terminal readable."""
    import transformers

    for message in (
        ".*isinstance.treespec, LeafSpec.*",
        r".*module\(s\) in eval mode at the start of training.*",
        ".*does not have many workers.*",
        ".*You passed in a `val_dataloader` but have no `validation_step`.*",
        ".*configure_optimizers` returned `None`.*",
        ".*`is_gradient_checkpointing` is deprecated.*",
    ):
        warnings.filterwarnings("ignore", message=message)
    transformers.logging.set_verbosity_error()
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
