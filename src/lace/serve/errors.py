"""Errors in the form that OpenAI's clients read: `{"error": {"message", "type", "param", "code"}}`."""

from __future__ import annotations

import re
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

_TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """An answer with an error status.

    Args:
        status: of HTTP.
        message: one line, for people.
        param: the field that is wrong.
        code: for programs.
        retry_after: seconds after which another try makes sense.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        # What a client sent may be quoted in it, half a surrogate pair for example.
        self.message = message.encode(errors="replace").decode()
        self.status, self.param, self.code = status, param and param.encode(errors="replace").decode(), code
        self.retry_after = retry_after

    def body(self) -> dict[str, Any]:
        kind = _TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return JSONResponse(self.body(), self.status, headers)


def describe(error: RequestValidationError) -> ApiError:
    """What is wrong with the first bad field of a request body; of a field of several types, the closest of them."""
    errors = error.errors()
    same_field = [e for e in errors if e["loc"][:2] == errors[0]["loc"][:2]]
    first = max(reversed(same_field), key=lambda e: len(e["loc"]))
    if first["type"] == "json_invalid":
        return ApiError(400, f"the body is not valid JSON: {first['ctx']['error']}")
    # Of a field of several types pydantic names the type too, "constrained-str", "list[…]", "constrained-list[…]".
    types = r"(constrained-)?(str|list\b.*)|literal\[.*"
    place = [str(part) for part in first["loc"][1:] if not re.fullmatch(types, str(part))]
    if not place:
        return ApiError(400, "the body must be a JSON object, sent with Content-Type: application/json")
    name = ".".join(place)
    if first["type"] == "extra_forbidden":
        return ApiError(400, f"unsupported field: {name}", param=name, code="unsupported_parameter")
    return ApiError(400, f"{name}: {first['msg']}", param=name, code="invalid_value")


def install_error_handlers(app: FastAPI) -> None:
    """Gives every error of the application this form."""

    @app.exception_handler(ApiError)
    async def api_error(request: Request, error: ApiError) -> JSONResponse:
        return error.response()

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        return describe(error).response()

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> JSONResponse:
        messages = {404: f"no such path: {request.url.path}", 405: f"{request.method} is not allowed here"}
        answer = ApiError(error.status_code, messages.get(error.status_code, str(error.detail))).response()
        answer.headers.update(error.headers or {})
        return answer

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> JSONResponse:
        return ApiError(500, "the server failed; its log says why").response()
