"""One file a page; the explicit table of routers (CONTRIBUTING: add a page)."""

from frontend.pages import studio

ROUTERS = (studio.router,)
