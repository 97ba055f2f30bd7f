"""The table of methods: name -> method, the same names as ``backend.schemas.methods.CARDS``.

Adding a method is one file beside this, one card there and one row here (CONTRIBUTING).
"""

from __future__ import annotations

from backend.schemas.generations import Gate
from worker.ml.concept_weights import ConceptWeights
from worker.ml.errors import InputInvalid
from worker.ml.methods.base import ConceptExamples, Method
from worker.ml.methods.custom_diffusion import CustomDiffusion
from worker.ml.methods.dreambooth import DreamBooth
from worker.ml.methods.loha import Loha
from worker.ml.methods.lokr import Lokr
from worker.ml.methods.lora import Lora
from worker.ml.methods.perfusion import Perfusion
from worker.ml.methods.rank_one import RankOne
from worker.ml.methods.svdiff import SVDiff
from worker.ml.methods.textual_inversion import TextualInversion

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        CustomDiffusion(),
        TextualInversion(),
        Lora(),
        DreamBooth(),
        Perfusion(),
        RankOne(),
        SVDiff(),
        Loha(),
        Lokr(),
    )
}


def with_gate(weights: ConceptWeights, gate: Gate | None) -> ConceptWeights:
    """``weights`` as they are drawn with another gate for all of their words; themselves where it is None. Raises
    `InputInvalid` for a method without one.
    """
    if gate is None:
        return weights
    params = weights.manifest.params
    if {"draw_bias", "draw_temperature"} <= params.keys():
        drawn = {**params, "draw_bias": gate.bias, "draw_temperature": gate.temperature}
    elif "gates" in params:
        drawn = {
            **params,
            "gates": {word: {**each, **gate.model_dump()} for word, each in params["gates"].items()},
        }
    else:
        raise InputInvalid(f"Weights of the method {weights.manifest.method} have no gate.")
    return ConceptWeights(weights.manifest.model_copy(update={"params": drawn}), weights.tensors)


__all__ = ["METHODS", "ConceptExamples", "Method", "with_gate"]
