"""Options of the commands that predict costs: a model on some hardware."""

from __future__ import annotations

from dataclasses import dataclass, field

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from specdec.hardware import Machine, ModelShape, Precision, Roofline, load_config
from specdec.hardware.roofline import Reach
from specdec.options import Count, NonNegative, Positive

DTYPES = (
    "bfloat16",
    "float16",
    "float32",
)  # formats to compute with; the first that the hardware has a figure for is used


@dataclass
class PrecisionOptions:
    """The option `precision`, as in conf/roofline.yaml."""

    weights: str | None = None
    kv: str | None = None
    compute: str | None = None

    def on(self, machine: Machine) -> Precision:
        compute = self.compute or next((d for d in DTYPES if d in machine.teraflops), next(iter(machine.teraflops)))
        return Precision(self.weights or compute, self.kv or compute, compute)


@dataclass
class Reached:
    """The option `reach`, as in conf/roofline.yaml."""

    memory: Positive = 1.0
    compute: Positive = 1.0
    message_us: NonNegative = 0.0
    overhead_us: NonNegative = 0.0

    def shares(self) -> Reach:
        return Reach(self.memory, self.compute, self.message_us / 1e6, self.overhead_us / 1e6)


@dataclass
class Modelled:
    """Options as in conf/roofline.yaml."""

    precision: PrecisionOptions = field(default_factory=PrecisionOptions)
    devices: Count = 1
    link: str | None = None
    reach: Reached = field(default_factory=Reached)

    def roofline(self, target: DictConfig, machine: Machine) -> Roofline:
        shape = target_shape(target)
        precision, reach = self.precision.on(machine), self.reach.shares()
        return Roofline(shape, machine, precision, self.devices, self.link, reach)


def target_shape(target: DictConfig) -> ModelShape:
    """Return the shape of the model that the config group `target` names, read from the model's config."""
    choice = str(HydraConfig.get().runtime.choices["target"])
    hub = target.get("name")  # the embedded and the tiny model have none
    return ModelShape.of(load_config(hub or choice), choice if choice != "hf" else hub)


def where(roofline: Roofline) -> str:
    """Return model, hardware and formats for titles."""
    count = f"{roofline.devices} x " if roofline.devices > 1 else ""
    p = roofline.precision
    kinds = p.weights if p.weights == p.kv == p.compute else f"weights {p.weights}, KV {p.kv}, products {p.compute}"
    return f"{roofline.shape.name} on {count}{roofline.machine.name}, {kinds}"
