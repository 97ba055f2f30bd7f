"""The table of methods: name -> method, the same names as ``backend.schemas.methods.CARDS``.

Adding a method is one file beside this, one card there and one row here (CONTRIBUTING).
"""

from __future__ import annotations

from worker.ml.concept_weights import ConceptWeights
from worker.ml.errors import MethodUnsupported
from worker.ml.methods.base import ConceptExamples, Method
from worker.ml.methods.custom_diffusion import CustomDiffusion
from worker.ml.methods.dreambooth import DreamBooth
from worker.ml.methods.lora import Lora
from worker.ml.methods.svdiff import SVDiff
from worker.ml.methods.textual_inversion import TextualInversion

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        CustomDiffusion(),
        TextualInversion(),
        Lora(),
        DreamBooth(),
        SVDiff(),
    )
}


def method_of(weights: ConceptWeights) -> Method:
    """The method that made ``weights``. Raises `MethodUnsupported`."""
    name = weights.manifest.method
    if name not in METHODS:
        raise MethodUnsupported(f"These weights were made by the method {name}, which is not known here.")
    return METHODS[name]


__all__ = ["METHODS", "ConceptExamples", "Method", "method_of"]
