"""The JSON routes. ``ROUTERS`` is the explicit table; ``registry.make_router`` makes one by the house's rules."""

from __future__ import annotations

from backend.api import (
    bases,
    compressions,
    concepts,
    evaluations,
    events,
    generations,
    images,
    jobs,
    merges,
    methods,
    photos,
    prompts,
    samples,
    trainings,
    weights,
)

ROUTERS = (
    bases.router,
    methods.router,
    samples.router,
    concepts.router,
    photos.router,
    trainings.router,
    compressions.router,
    merges.router,
    prompts.router,
    generations.router,
    jobs.router,
    events.router,
    weights.router,
    evaluations.router,
    images.router,
)
