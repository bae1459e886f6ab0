"""The REST API: what there is to see of runs, rounds and clients, and the commands that steer them.

Errors are problem details (RFC 9457). Each file has the routes of one subject.
"""

from typing import Any

from fastapi import Depends, FastAPI
from fastapi.security import HTTPBearer

from server.access.gate import BodyLimit, TokenGate
from server.api.access import access_routes
from server.api.clients import client_routes
from server.api.description import DescribedAPI
from server.api.errors import add_problems
from server.api.events import event_routes
from server.api.head import HeadAnswers
from server.api.health import health_routes
from server.api.learners import learner_routes
from server.api.metrics import AnswerCount, metrics_routes
from server.api.models import model_routes
from server.api.rounds import round_routes
from server.api.runs import run_routes
from server.api.sources import Sources
from server.api.specs import spec_routes
from server.api.summaries import summary_routes
from server.api.timeline import timeline_routes
from server.dashboard.routes import dashboard_routes
from server.problems import Problem
from wire import RELEASE

PREFIX = "/api/v1"


def create_api(sources: Sources, is_loopback: bool) -> FastAPI:
    """Build the application. On loopback nobody is asked for a token as long as there is none."""
    summary = "Federated learning: runs, rounds and clients."
    # The framework's pages of the description would load their scripts from elsewhere.
    app = DescribedAPI(title="Choral", version=RELEASE, summary=summary, docs_url=None, redoc_url=None)
    app.prefix = PREFIX
    # For the description alone: the gate asks for the token, before a body is read.
    protected = [Depends(HTTPBearer(auto_error=False))]
    problems: dict[int | str, dict[str, Any]] = {
        code: {"model": Problem} for code in (400, 401, 403, 404, 409, 413, 422, 429, 503)
    }
    for routes in (
        run_routes,
        model_routes,
        round_routes,
        summary_routes,
        timeline_routes,
        event_routes,
        client_routes,
    ):
        app.include_router(routes(sources), prefix=PREFIX, dependencies=protected, responses=problems)
    unprotected: dict[int | str, dict[str, Any]] = {code: problems[code] for code in (400, 413, 503)}
    app.include_router(health_routes(sources), prefix=PREFIX, responses=unprotected)
    app.include_router(spec_routes(), prefix=PREFIX, responses=unprotected)
    app.include_router(learner_routes(), prefix=PREFIX, dependencies=protected, responses=problems)
    app.include_router(access_routes(), prefix=PREFIX, dependencies=protected, responses=problems)
    app.include_router(metrics_routes(sources), dependencies=protected, responses=problems)
    app.include_router(dashboard_routes())
    app.add_middleware(BodyLimit)
    app.add_middleware(TokenGate, store=sources.store, is_loopback=is_loopback)
    # Around all others, because it counts what they turn away, too.
    app.add_middleware(AnswerCount, metrics=sources.metrics)
    app.add_middleware(HeadAnswers)
    add_problems(app)
    return app
