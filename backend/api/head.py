"""HEAD is answered by the handler of GET; its body is never made or read."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send


class HeadAsGet:
    """Between the guard and the routes. No route lists HEAD, so none can forget it and the schema stays as it is."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return
        as_get = {
            **scope,
            "method": "GET",
        }  # a copy: the server reads the method of its own to leave out the body

        async def send_headers(message: Message) -> None:
            if message["type"] != "http.response.start":
                return
            scope.update({name: as_get[name] for name in ("route",) if name in as_get})  # for log and metrics
            await send(message)
            await send({"type": "http.response.body", "body": b""})
            raise _Answered

        try:
            await self._app(as_get, receive, send_headers)
        except _Answered:
            return


class _Answered(Exception):
    """Everything has been said; ends files and streams before their first byte."""
