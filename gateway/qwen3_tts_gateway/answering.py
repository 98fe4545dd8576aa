"""Errors on the wire: OpenAI's envelope under `/v1`, the original API's `{"detail"}` everywhere else."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.encoders import jsonable_encoder
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from qwen3_tts_client import KeyRefused
from qwen3_tts_gateway.errors import KNOWN_ERRORS, InvalidInput, Reply, invalid_input, reply_to
from qwen3_tts_gateway.naming import as_callers_say

log = logging.getLogger(__name__)

_UNEXPECTED = Reply(500, "server_error", "internal_error")
_MOST_PROBLEMS = 20  # told of one body
_NOT_JSON = "the body is not valid JSON"
_CODES = {404: "not_found", 405: "method_not_allowed"}  # of what the framework refuses


def answer_errors(app: FastAPI) -> None:
    """Give every error that can reach the top its answer."""
    for kind in KNOWN_ERRORS:
        app.add_exception_handler(kind, _answer_known)
    app.add_exception_handler(RequestValidationError, _answer_invalid)
    app.add_exception_handler(HTTPException, _answer_http)


class BugReporter:
    """Answers what no handler knows, as the innermost of what stands around the routes.

    Where Starlette itself would do so, outside of everything, no log and no metric would hear of it.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        has_begun = False

        async def begin(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        try:
            await self._app(scope, receive, begin)
        except Exception as error:
            log.error("unexpected error", exc_info=error)
            if not has_begun:  # else the answer stays without its end, as it is
                await _bug(Request(scope))(scope, receive, send)


def error_object(error: Exception) -> dict[str, Any]:
    """A known error as OpenAI's clients read it, also within a stream that has begun."""
    reply = reply_to(error)
    return {
        "message": told(error),
        "type": reply.type,
        "param": getattr(error, "param", None),
        "code": reply.code,
    }


def told(error: Exception) -> str:
    """What a caller is told of a known error; what is kept from them goes to the log."""
    message = reply_to(error).message
    if message is None:
        return as_callers_say(str(error))
    if isinstance(error, KeyRefused):
        log.error(
            "Triton refuses the gateway's key: set TRITON_API_KEY to Triton's", extra={"reason": str(error)}
        )
    else:
        log.warning("a request failed", extra={"reason": str(error)})
    return message


async def _answer_known(request: Request, error: Exception) -> Response:
    reply = reply_to(error)
    headers = {}
    if reply.retry_after_s is not None:
        headers["Retry-After"] = str(max(1, math.ceil(reply.retry_after_s)))
    if reply.status == 408:
        headers["Connection"] = "close"  # nobody waits for the rest of the body
    if reply.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    content = {"error": error_object(error)} if _is_openai(request) else {"detail": told(error)}
    return JSONResponse(content, reply.status, headers)


async def _answer_invalid(request: Request, error: Exception) -> Response:
    """What FastAPI finds wrong with a body; the original API answers 422 with FastAPI's own list."""
    assert isinstance(error, RequestValidationError)
    problems = error.errors()[:_MOST_PROBLEMS]
    if _is_openai(request):
        return await _answer_known(request, _invalid(request, problems[0]))
    listed = [
        {"loc": each["loc"], "msg": _of_the_whole(request, each) or each["msg"], "type": each["type"]}
        for each in problems
    ]
    return JSONResponse({"detail": jsonable_encoder(listed)}, 422)


def _invalid(request: Request, problem: Mapping[str, Any]) -> InvalidInput:
    if message := _of_the_whole(request, problem):
        return InvalidInput(message)
    where, *location = problem["loc"]  # of the body, the query or the path
    return invalid_input(problem, location, str(where))


def _of_the_whole(request: Request, problem: Mapping[str, Any]) -> str | None:
    """What is wrong with a body that has no fields to be looked at; None: it has some."""
    where, *location = problem["loc"]
    if problem["type"] == "json_invalid":
        return f"{_NOT_JSON}: {problem['ctx']['error']}, at character {location[0]}"
    if where != "body" or location:
        return None
    if problem["type"] == "missing":
        return "the body is missing; it must be a JSON object"
    if _is_json(request):
        return "the body is not a JSON object"
    kind = request.headers.get("content-type")
    told = f"the Content-Type {kind!r}" if kind else "no Content-Type"
    return f"the body has {told}; send it as application/json"


async def _answer_http(request: Request, error: Exception) -> Response:
    """What the framework refuses by itself: no such route, no such method, a body that cannot be read."""
    assert isinstance(error, HTTPException)
    if isinstance(error.__cause__, KNOWN_ERRORS):  # while FastAPI read the body, which it calls unreadable
        return await _answer_known(request, error.__cause__)
    if isinstance(error.__cause__, (ValueError, RecursionError)) and _is_json(request):
        error.detail = f"{_NOT_JSON}: {_why_unreadable(error.__cause__)}"
    content: dict[str, Any] = {"detail": error.detail}
    if _is_openai(request):
        code = _CODES.get(error.status_code, "invalid_value")
        reply = Reply(error.status_code, "invalid_request_error", code)
        content = {"error": {"message": error.detail, "type": reply.type, "param": None, "code": reply.code}}
    return JSONResponse(content, error.status_code, error.headers)


def _why_unreadable(cause: Exception) -> str:
    """Python's own words are about Python."""
    if isinstance(cause, UnicodeDecodeError):
        return f"it is not UTF-8 at byte {cause.start}"
    return "it is nested too deeply" if isinstance(cause, RecursionError) else "a number has too many digits"


def _is_json(request: Request) -> bool:
    """As FastAPI sees it."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    return kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json"))


def _bug(request: Request) -> Response:
    message = "something went wrong; the server's log knows what"
    if not _is_openai(request):
        return JSONResponse({"detail": message}, _UNEXPECTED.status)
    content = {"message": message, "type": _UNEXPECTED.type, "param": None, "code": _UNEXPECTED.code}
    return JSONResponse({"error": content}, _UNEXPECTED.status)


def _is_openai(request: Request) -> bool:
    return request.url.path.startswith("/v1/")
