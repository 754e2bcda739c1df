"""Methods to compare Neural Gate with, one file each; `METHODS` is the registry.

Each method is a dataclass of its settings, with its owner's defaults, and fits a `WeightEdit` or a `Steering`:

    data = MethodData.prepare(model, processor, records, retention, layer=10)
    for method in METHODS["alphaedit"]().variants():
        fitted = method.fit(model, data)
        with fitted.applied(model):
            evaluate(model, fitted.prompted(processor), splits)
"""

from lightning_neuralgate.methods.alphaedit import AlphaEdit
from lightning_neuralgate.methods.alphasteer import AlphaSteer, AlphaSteering
from lightning_neuralgate.methods.base import FittedMethod, Method, WeightEdit
from lightning_neuralgate.methods.cast import CAST, ConditionalSteering
from lightning_neuralgate.methods.circuit_breakers import CircuitBreakers
from lightning_neuralgate.methods.data import MethodData, MethodPair
from lightning_neuralgate.methods.dinm import DINM
from lightning_neuralgate.methods.dpo import DPO
from lightning_neuralgate.methods.ft import FT
from lightning_neuralgate.methods.ft_l import FTL
from lightning_neuralgate.methods.gru import GRU
from lightning_neuralgate.methods.lora import LoRA, LoRAAll
from lightning_neuralgate.methods.memflex import MemFlex, MemFlexRefusal
from lightning_neuralgate.methods.memit import MEMIT
from lightning_neuralgate.methods.mip_editor import MIPEditor
from lightning_neuralgate.methods.neural_gate import NeuralGateEdit, RandomMask, ShuffledMask, Ungated
from lightning_neuralgate.methods.npo import NPO, SimNPO
from lightning_neuralgate.methods.prompt import FewShotPrompt, SystemPrompt
from lightning_neuralgate.methods.refusal_direction import RefusalDirection
from lightning_neuralgate.methods.rmu import RMU
from lightning_neuralgate.methods.sku import SKU
from lightning_neuralgate.methods.steering import DirectionSteering, PromptSteering, Steering

_CLASSES: tuple[type[Method], ...] = (
    SystemPrompt,
    FewShotPrompt,
    FT,
    FTL,
    LoRA,
    LoRAAll,
    Ungated,
    NeuralGateEdit,
    ShuffledMask,
    RandomMask,
    GRU,
    DPO,
    DINM,
    MEMIT,
    AlphaEdit,
    SKU,
    MemFlex,
    MemFlexRefusal,
    RefusalDirection,
    CAST,
    AlphaSteer,
    NPO,
    SimNPO,
    RMU,
    CircuitBreakers,
    MIPEditor,
)
METHODS: dict[str, type[Method]] = {method.name: method for method in _CLASSES}
"""Name -> method, in the order of tables."""

__all__ = [
    "METHODS",
    "AlphaSteering",
    "ConditionalSteering",
    "DirectionSteering",
    "FittedMethod",
    "Method",
    "MethodData",
    "MethodPair",
    "PromptSteering",
    "Steering",
    "WeightEdit",
]
