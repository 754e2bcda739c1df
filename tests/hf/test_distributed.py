from __future__ import annotations

import pytest
from lightning.pytorch import strategies

from lightning_neuralgate.errors import UnsupportedSetupError
from lightning_neuralgate.hf.distributed import UNTESTED_STRATEGIES, refuse_strategies


@pytest.mark.parametrize("name", UNTESTED_STRATEGIES)
def test_untested_strategies_are_refused_by_name_with_their_subclasses(name: str) -> None:
    assert hasattr(strategies, name), "the name of a Trainer strategy"
    stub = type(name, (), {})
    for strategy in (stub(), type("Subclass", (stub,), {})()):
        with pytest.raises(UnsupportedSetupError, match=f"Some has not been tested with {name}; use 'ddp'"):
            refuse_strategies(strategy, UNTESTED_STRATEGIES, "Some")


def test_supported_strategies_are_not_refused() -> None:
    refuse_strategies(strategies.SingleDeviceStrategy(), UNTESTED_STRATEGIES, "Some")
