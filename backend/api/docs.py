"""``/docs``: every operation on one readable page, made from the schema; no script, nothing from elsewhere."""

from __future__ import annotations

from html import escape
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse

router = APIRouter(include_in_schema=False)
_STYLE = """
:root { color-scheme: light dark; --ink: light-dark(#1d2433, #e8eaf0); --paper: light-dark(#fbfaf7, #10141f);
  --line: light-dark(#d9dde5, #2a3246); --moon: light-dark(#8a5a00, #f0c368); }
body { font: 16px/1.5 Inter, system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line); }
section { margin: 1.25rem 0; }
h3 { font-size: 1rem; margin: 0; }
code { font: 0.9em ui-monospace, monospace; overflow-wrap: anywhere; }
.method { color: var(--moon); display: inline-block; min-width: 4.5rem; font-weight: 600; }
p, ul { margin: 0.25rem 0 0.25rem 4.5rem; }
a { color: inherit; }
@media (max-width: 40rem) { p, ul { margin-left: 0; } }
"""


@router.get("/docs.css")
def docs_style() -> Response:
    return Response(_STYLE, media_type="text/css; charset=utf-8")


@router.get("/docs")
def docs(request: Request) -> HTMLResponse:
    """The API, readable."""
    schema = request.app.openapi()
    groups: dict[str, list[str]] = {}
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            groups.setdefault(operation.get("tags", ["other"])[0], []).append(
                _operation(method, path, operation)
            )
    body = "".join(f"<h2>{escape(tag)}</h2>{''.join(shown)}" for tag, shown in groups.items())
    return HTMLResponse(
        "<!doctype html><html lang=en><meta charset=utf-8>"
        '<meta name=viewport content="width=device-width, initial-scale=1">'
        f"<title>{escape(schema['info']['title'])}: API</title><link rel=stylesheet href=/docs.css>"
        f"<h1>{escape(schema['info']['title'])} API</h1><p>{escape(schema['info']['description'])}</p>"
        f"<p>Machine-readable: <a href={escape(request.app.openapi_url)}>OpenAPI</a>.</p>{body}</html>"
    )


def _operation(method: str, path: str, operation: dict[str, Any]) -> str:
    names = [
        f"<li><code>{escape(each['name'])}</code> ({escape(each['in'])}) {escape(each.get('description', ''))}"
        for each in operation.get("parameters", ())
    ]
    bodies = [
        f"<li>body <code>{escape(kind)}</code> {escape(_name(content['schema']))}"
        for kind, content in operation.get("requestBody", {}).get("content", {}).items()
    ]
    answers = [
        f"<li>{escape(status)}: {escape(answer['description'])}"
        for status, answer in operation["responses"].items()
    ]
    return (
        f"<section id={escape(operation['operationId'])}><h3><span class=method>{method.upper()}</span>"
        f"<code>{escape(path)}</code></h3><p>{escape(operation.get('description', ''))}</p>"
        f"<ul>{''.join(names + bodies + answers)}</ul></section>"
    )


def _name(schema: dict[str, Any]) -> str:
    return str(schema.get("$ref", "")).rpartition("/")[2]
