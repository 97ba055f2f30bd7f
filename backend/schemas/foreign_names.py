"""What other programs call the tensors of an adapter (methods.md 8): tables from our names to theirs.

A module is "site.<path>" in the denoiser, "encoder.<path>" in the text encoder, whose paths lack ``text_model.`` here
and have it in every file (methods.md 16.1). kohya's names have lost their dots: they are looked up and never parsed.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

ForeignFormat = Literal["kohya", "webui", "diffusers", "embedding"]
FOREIGN_FORMATS: tuple[ForeignFormat, ...] = ("kohya", "webui", "diffusers", "embedding")
KOHYA_PARTS: dict[str, dict[str, str]] = {
    "lora": {"down": "lora_down.weight", "up": "lora_up.weight", "alpha": "alpha"},
    "loha": {
        "first_up": "hada_w1_a",
        "first_down": "hada_w1_b",
        "second_up": "hada_w2_a",
        "second_down": "hada_w2_b",
        "alpha": "alpha",
    },
    "lokr": {
        "first": "lokr_w1",
        "second": "lokr_w2",
        "second_up": "lokr_w2_a",
        "second_down": "lokr_w2_b",
        "alpha": "alpha",
    },
}
"""{method: {part: what stands behind the module's name}}; LoHa and LoKr are LyCORIS's."""
DIFFUSERS_PARTS = {"down": "lora_A.weight", "up": "lora_B.weight"}
DIFFUSERS_SPELLINGS = {
    "lora_A.weight": "down",
    "lora_B.weight": "up",
    "lora.down.weight": "down",
    "lora.up.weight": "up",
    "lora_linear_layer.down.weight": "down",
    "lora_linear_layer.up.weight": "up",
}
"""What may stand behind a module's name in diffusers' layout, in its older spellings too."""
ADAPTER_METADATA = "lora_adapter_metadata"
"""Key of the header under which diffusers keeps the configuration of each component, as JSON."""


def kohya_module(module: str) -> str:
    """ "site.mid_block.attentions.0" is ``lora_unet_mid_block_attentions_0``."""
    part, _, path = module.partition(".")
    prefix = "lora_unet_" if part == "site" else "lora_te_text_model_"
    return prefix + path.replace(".", "_")


def kohya_modules(modules: Iterable[str]) -> dict[str, str]:
    """{their name: ours}, in all the ways in which the text encoder is spelled."""
    known: dict[str, str] = {}
    for module in modules:
        name = kohya_module(module)
        known[name] = module
        if module.startswith("encoder."):
            known[name.replace("lora_te_", "lora_te1_", 1)] = module
            known[name.replace("lora_te_text_model_", "lora_te_", 1)] = module
    return known


def diffusers_component(module: str) -> tuple[str, str]:
    """("unet" or "text_encoder", path)."""
    part, _, path = module.partition(".")
    return ("unet", path) if part == "site" else ("text_encoder", f"text_model.{path}")


def diffusers_modules(modules: Iterable[str]) -> dict[str, str]:
    """{their name: ours}, with and without ``text_model.``."""
    known: dict[str, str] = {}
    for module in modules:
        component, path = diffusers_component(module)
        known[f"{component}.{path}"] = module
        known[f"{component}.{path.removeprefix('text_model.')}"] = module
    return known
