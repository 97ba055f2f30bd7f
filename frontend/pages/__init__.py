"""One file a page; the explicit table of routers (CONTRIBUTING: add a page)."""

from frontend.pages import (
    compose,
    concepts,
    evaluations,
    gallery,
    images,
    jobs,
    merged,
    merges,
    new_concept,
    photos,
    queue,
    settings,
    studio,
    trainings,
    weights,
)

ROUTERS = (
    studio.router,
    new_concept.router,
    concepts.router,
    photos.router,
    trainings.router,
    weights.router,
    evaluations.router,
    jobs.router,
    merges.router,
    merged.router,
    compose.router,
    gallery.router,
    images.router,
    queue.router,
    settings.router,
)
