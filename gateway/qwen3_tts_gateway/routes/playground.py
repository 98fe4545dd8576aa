"""The playground: a page to try voices on, which asks nobody but this gateway for anything."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import FileResponse, RedirectResponse, Response

from qwen3_tts_gateway.errors import NotFound

router = APIRouter(include_in_schema=False)

FILES = {path.name: path for path in (Path(__file__).parents[1] / "playground").iterdir() if path.is_file()}

# Not the machine's own table, in which a script may be text/plain: `nosniff` would then keep it from running.
MEDIA_TYPES = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}

HEADERS = {
    "Content-Security-Policy": "; ".join(
        (
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            "img-src 'self'",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types 'none'",
        )
    ),
    "Permissions-Policy": "microphone=(self), camera=(), geolocation=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",  # the page and its scripts are of one release
}


@router.get("/playground")
async def playground() -> Response:
    return _file("index.html")


@router.get("/playground/")
async def playground_with_slash() -> Response:
    """The page's links are relative to the path without one."""
    return RedirectResponse("../playground")


@router.get("/playground/{name}")
async def playground_file(name: str) -> Response:
    return _file(name)


def _file(name: str) -> Response:
    if name not in FILES:
        raise NotFound(f"the playground has no file {name!r}")
    return FileResponse(FILES[name], media_type=MEDIA_TYPES[FILES[name].suffix], headers=HEADERS)
