"""What a forward costs on a machine that need not be here: from a config and a datasheet, or from a measured profile.

machine.py     a device's peaks, as conf/hardware/ has them or as measured here
model_cost.py  what a config says of a model: elements, KV cache, attention, experts
configs.py     configs by name: kept in configs/, embedded, tiny, or any hub id or folder; no weights
roofline.py    time, bound and memory of a forward on a machine
curves.py      cost curves, from a roofline or measured, and what drafting costs
planning.py    which tree pays at a batch and a context

Everything but a measured curve is a prediction: a limit that real kernels approach and do not reach.
"""

from specdec.hardware.configs import load_config
from specdec.hardware.curves import FREE, CostCurve, DraftCost, MeasuredCurve
from specdec.hardware.machine import Machine
from specdec.hardware.model_cost import ModelShape, Precision
from specdec.hardware.roofline import Forward, Roofline

__all__ = [
    "FREE",
    "CostCurve",
    "DraftCost",
    "Forward",
    "Machine",
    "MeasuredCurve",
    "ModelShape",
    "Precision",
    "Roofline",
    "load_config",
]
