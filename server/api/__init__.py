"""The REST API: what there is to see of runs, rounds and clients, and the commands that steer them.

Errors are problem details (RFC 9457). Each file has the routes of one subject.
"""

from typing import Any

from fastapi import Depends, FastAPI
from fastapi.security import HTTPBearer

from server.api.clients import client_routes
from server.api.errors import add_problems
from server.api.health import health_routes
from server.api.runs import run_routes
from server.api.specs import spec_routes
from server.dashboard.routes import dashboard_routes
from server.gate import BodyLimit, LoopbackNames, TokenGate
from server.problems import Problem
from server.pulse import Pulse
from server.runs import Runs
from server.sessions import Sessions
from server.store import Store

PREFIX = "/api/v1"


def create_api(runs: Runs, sessions: Sessions, store: Store, pulse: Pulse, token: str) -> FastAPI:
    """Build the application. An empty `token` asks nobody for one, and then answers only requests to loopback names."""
    app = FastAPI(title="Choral", version="0.1.0", summary="Federated learning: runs, rounds and clients.")
    app.include_router(health_routes(sessions, pulse), prefix=PREFIX)
    # For the description alone: the gate asks for the token, before a body is read.
    protected = [Depends(HTTPBearer(auto_error=False))] if token else []
    problems: dict[int | str, dict[str, Any]] = {
        code: {"model": Problem} for code in (400, 401, 404, 409, 413, 422, 503)
    }
    app.include_router(run_routes(runs, store), prefix=PREFIX, dependencies=protected, responses=problems)
    app.include_router(spec_routes(), prefix=PREFIX)
    app.include_router(client_routes(sessions), prefix=PREFIX, dependencies=protected, responses=problems)
    app.include_router(dashboard_routes())
    app.add_middleware(BodyLimit)
    if token:
        app.add_middleware(TokenGate, token=token)
    else:
        app.add_middleware(LoopbackNames)
    add_problems(app)
    return app
