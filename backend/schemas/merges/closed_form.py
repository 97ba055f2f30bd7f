"""The closed-form merge (Kumari et al., CVPR 2023, section 3.3; methods.md 6)."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from backend.schemas.merges.card import MergeCard
from backend.schemas.strict import Strict


class ClosedFormParams(Strict):
    """What the merge holds still, and how it treats what cannot be told apart (methods.md 6.3, 6.4)."""

    captions: Annotated[
        int, Field(ge=10, le=20000, description="captions whose keys and values are held where they are")
    ] = 1000
    ridge: Annotated[float, Field(ge=0, le=1, description="of the mean squared caption feature; 0: none")] = (
        1e-8
    )
    tolerance: Annotated[
        float,
        Field(
            gt=0,
            lt=1,
            description="constraint directions weaker than this share of the strongest are dropped",
        ),
    ] = 1e-10
    start_token: Annotated[bool, Field(description="hold the start token's key and value as well")] = True
    padding: Annotated[
        int, Field(ge=0, le=77, description="padding positions of each caption that are held as well")
    ] = 4
    prefix: Annotated[
        bool, Field(description="constrain the words before V* too; concepts contradict one another there")
    ] = False
    company: Annotated[
        bool,
        Field(
            description="constrain every subject's word behind each other subject's too, as prompts with several say "
            "them; takes the longer the more there are"
        ),
    ] = False


CARD = MergeCard(
    name="closed-form",
    title="Closed form",
    description=(
        "Every concept's words keep exactly the keys and values they learned, and all other text moves as little as "
        "possible; done in a second, proven by a report."
    ),
    source="Kumari et al., Multi-Concept Customization of Text-to-Image Diffusion, CVPR 2023 (arXiv 2212.04488)",
    takes="text-kv",
    makes="text",
    params_type=ClosedFormParams,
)
