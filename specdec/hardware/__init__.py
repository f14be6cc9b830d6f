"""Predict the cost of a forward on any machine, from a config and a datasheet or from a measured profile.

machine.py     peaks of a device, from conf/hardware/ or measured on this machine
model_cost.py  elements, KV cache, attention and experts of a model, from its config
configs.py     load configs by name: kept in configs/, embedded, tiny, a hub id or a folder; no weights
roofline.py    time, bound and memory of a forward on a machine
curves.py      cost curves, predicted or measured, and the cost of drafting
acceptance.py  statistics of accepted nodes, and the candidate trees they give
planning.py    choose the best tree for a batch and a context

All figures except measured curves are predictions: limits that real kernels approach but do not reach.
"""

from specdec.hardware.configs import load_config
from specdec.hardware.curves import FREE, CostCurve, DraftCost, MeasuredCurve
from specdec.hardware.machine import Machine
from specdec.hardware.model_cost import ModelShape, Precision
from specdec.hardware.roofline import ForwardCost, Roofline

__all__ = [
    "FREE",
    "CostCurve",
    "DraftCost",
    "ForwardCost",
    "Machine",
    "MeasuredCurve",
    "ModelShape",
    "Precision",
    "Roofline",
    "load_config",
]
