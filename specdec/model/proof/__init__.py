"""A check before use: a model is accepted only if our forward gives what transformers' own gives."""

from specdec.model.proof.admission import ForwardPath, Proof, admitted

__all__ = ["ForwardPath", "Proof", "admitted"]
