"""/predict: rows in, what `peftkit predict` writes beside them out."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Body, Query, Request
from fastapi.responses import JSONResponse, Response

from peftkit.serving.following import Post, submitted, unless_gone
from peftkit.serving.jobs import Answered, Rows
from peftkit.serving.model import Served
from peftkit.serving.problems import AskedError
from peftkit.serving.rows import RowLane
from peftkit.serving.service import Service
from peftkit.tasks.base import Row

Columns = dict[str, Any]


def routes(service: Service) -> APIRouter:
    """What is added to the application."""
    router = APIRouter(tags=["rows"])

    @router.post("/predict")
    async def predict(
        request: Request,
        rows: Annotated[list[Columns] | Columns, Body()],
        model: Annotated[str | None, Query()] = None,
    ) -> Response:
        """One row's answer, or those of a list in its order; a row of a list that cannot be answered has an `error`."""
        served = service.find(model, "rows")
        if served.row_lane is None:
            raise AskedError(f"the model {served.name!r} has nothing to predict of a row", "model")
        listed = rows if isinstance(rows, list) else [rows]
        if not listed:
            return JSONResponse([])
        answers = await unless_gone(request, _answers(service, served, served.row_lane, served.own_rows(listed)))
        if answers is None:
            return Response(status_code=499)
        if isinstance(rows, list):
            return JSONResponse(answers)
        if "error" in answers[0]:
            raise AskedError(str(answers[0]["error"]))
        return JSONResponse(answers[0])

    return router


async def _answers(service: Service, served: Served, lane: RowLane, rows: list[Row]) -> list[Row]:
    post = Post(service.limits.timeout)
    with submitted(service.worker, lane, [Rows(post.teller(0), rows=rows)]):
        answers = [answer async for _, told in post.read(1) if isinstance(told, Answered) for answer in told.answers]
    count = service.meters.rows
    failed = sum("error" in answer for answer in answers)
    count.labels(served.name, "failed").inc(failed)
    count.labels(served.name, "answered").inc(len(answers) - failed)
    return answers
