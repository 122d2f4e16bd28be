"""The application: OpenAI's routes, /predict, pages to try the model and to read what can be asked, and what its keepers ask."""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware

from peftkit.serving import openai_routes, row_routes
from peftkit.serving.asked import in_a_sentence
from peftkit.serving.following import RETRY
from peftkit.serving.gate import Gate
from peftkit.serving.problems import AskedError, shaped
from peftkit.serving.service import Service
from peftkit.serving.worker import where

log = logging.getLogger(__name__)
PAGE, DOCS = (Path(__file__).with_name(name) for name in ("page.html", "docs.html"))
PARTS = re.compile(r"<(script|style)>(.*?)</\1>", re.DOTALL)
HERE = ["127.0.0.1", "localhost", "[::1]"]


def application(service: Service, key: str | None = None, only_here: bool = True) -> Any:
    """An ASGI application. `key` is what `Authorization: Bearer` must hold; `only_here` refuses other hosts' names.

    Without a key, a page from elsewhere whose name was turned to this machine (DNS rebinding) could ask the model.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.worker.start()
        yield
        service.worker.close()

    app = FastAPI(title="peftkit", docs_url=None, redoc_url=None, lifespan=lifespan)
    app.include_router(openai_routes.routes(service))
    app.include_router(row_routes.routes(service))
    _add_care(app, service)
    _add_pages(app)
    _add_problems(app)
    if key is None and only_here:
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=HERE, www_redirect=False)
    paths = {getattr(route, "path", "") for route in app.routes}
    return Gate(app, service.limits, key, [*paths, *app.openapi()["paths"]], service.meters.request)


def _add_care(app: FastAPI, service: Service) -> None:
    @app.get("/health", tags=["care"])
    async def health() -> Response:
        """200 while the service lives."""
        alive = service.worker.alive
        return JSONResponse({"status": "ok" if alive else "the thread that computes has ended"}, 200 if alive else 503)

    @app.get("/ready", tags=["care"])
    async def ready() -> Response:
        """200 while it takes requests."""
        can = service.worker.alive and not service.stopping
        return JSONResponse({"status": "ready" if can else "stopping"}, 200 if can else 503)

    @app.get("/metrics", tags=["care"])
    async def metrics() -> Response:
        """For Prometheus."""
        return Response(service.meters.text(), media_type=service.meters.content_type)


def _add_pages(app: FastAPI) -> None:
    page, docs = (file.read_text(encoding="utf-8") for file in (PAGE, DOCS))
    # FastAPI's own /docs has its scripts from elsewhere.
    told = json.dumps(app.openapi()).replace("<", "\\u003c")
    docs = docs.replace(">OPENAPI<", f">{told}<")

    @app.get("/", include_in_schema=False)
    async def show() -> Response:
        return HTMLResponse(page, headers={"content-security-policy": policy(page)})

    @app.get("/docs", include_in_schema=False)
    async def tell() -> Response:
        return HTMLResponse(docs, headers={"content-security-policy": policy(docs)})


def policy(page: str) -> str:
    """What the page may do: run the script and have the style that are in it, and ask this service; nothing else."""
    own = {"script": "", "style": ""}
    for kind, content in PARTS.findall(page):
        own[kind] += f" 'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"
    return (
        f"default-src 'none'; script-src{own['script']}; style-src{own['style']}; connect-src 'self'; img-src data:;"
        " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _add_problems(app: FastAPI) -> None:
    @app.exception_handler(AskedError)
    async def asked(request: Request, problem: AskedError) -> Response:
        headers = {"retry-after": str(RETRY)} if problem.status == 429 else {}
        told = shaped(problem.status, str(problem), problem.param, problem.code)
        return JSONResponse(told, problem.status, headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, problem: RequestValidationError) -> Response:
        return await asked(request, in_a_sentence(list(problem.errors())))

    @app.exception_handler(HTTPException)
    async def http(request: Request, problem: HTTPException) -> Response:
        text = (
            f"{request.method} {request.url.path} is not answered here"
            if problem.status_code == 404
            else problem.detail
        )
        return JSONResponse(shaped(problem.status_code, text), problem.status_code, problem.headers)

    @app.exception_handler(Exception)
    async def unexpected(request: Request, problem: Exception) -> Response:
        log.error("a request failed: %s", where(problem))
        return JSONResponse(shaped(500, f"something went wrong inside ({type(problem).__name__})"), 500)
