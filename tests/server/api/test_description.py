"""The REST API does what its description says: schemathesis calls every operation with what it allows and with what it does not."""

import asyncio
import copy
from pathlib import Path
from typing import Any

import httpx
import schemathesis
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from safetensors.torch import save
from schemathesis import GenerationMode
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import positive_data_acceptance

from server.api.examples import EXAMPLES
from server.checkpoints import checkpoint_path
from server.coordinator import Coordinator
from server.records import RefusalRecord, RunState
from tests.hostile import joined
from tests.loopback import serving
from tests.server.api.test_curves import a_round
from tests.server.rest import stored_run

EXAMPLE_COUNT = 5
"""Calls of each operation in each of three ways."""

STREAM = "/api/v1/events/stream"
"""It has no end; tests of its own read it."""


async def describe(coordinator: Coordinator) -> dict[str, Any]:
    async with httpx.AsyncClient(base_url=f"http://{coordinator.http_address}") as api:
        document: dict[str, Any] = (await api.get("/openapi.json")).raise_for_status().json()
        return document


async def filled(coordinator: Coordinator, folder: Path, client_id: str) -> dict[str, Any]:
    """Store a run with rounds and a model, and return what paths may name."""
    run = await stored_run(coordinator, "run-1", RunState.PAUSED, round_number=3, metrics={"accuracy": 0.3})
    refusal = RefusalRecord(client_id="ben", reason="not_finite", detail="coordinate 3")
    for number in (1, 2, 3):
        record = a_round(number, float("nan") if number == 2 else 0.3, refusals=[refusal])
        await coordinator.store.commit_round(run, record.with_(selected=[client_id]))
    path = checkpoint_path(folder / "runs" / "run-1", 3)
    path.parent.mkdir(parents=True)
    path.write_bytes(save({"bias": torch.tensor([1.0, 2.0])}))
    return {"run_id": "run-1", "number": 2, "client_id": client_id, "name": "cnn"}


def call_all(url: str, document: dict[str, Any], names: dict[str, Any]) -> list[str]:
    """Call every operation as its description allows, as it does not, and of things that there are; return which were called."""
    called = []
    for found in schemathesis.openapi.from_dict(document).get_all_operations():
        assert isinstance(found, Ok)
        operation = found.ok()
        call(url, operation, GenerationMode.POSITIVE, {})
        call(url, operation, GenerationMode.POSITIVE, names)
        described = document["paths"][operation.path][operation.method]
        # There is nothing that a name in a path must not be.
        if "requestBody" in described or any(one["in"] == "query" for one in described.get("parameters", ())):
            call(url, operation, GenerationMode.NEGATIVE, {})
        called.append(operation.label)
    return called


def call(url: str, operation: Any, mode: GenerationMode, names: dict[str, Any]) -> None:
    """Call an operation a few times, each drawn from its description, but for the names of things that there are."""
    # A spec may keep its schema and break a rule all the same; that there is no such learner, for one.
    excluded: list[Any] = [positive_data_acceptance] if operation.method == "post" else []

    @seed(7)
    @settings(
        max_examples=EXAMPLE_COUNT,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def check(case: schemathesis.Case[Any]) -> None:
        case.path_parameters.update({key: names[key] for key in case.path_parameters.keys() & names.keys()})
        case.call_and_validate(base_url=url, excluded_checks=excluded)

    check()


async def test_every_operation_keeps_to_its_description(tmp_path: Path) -> None:
    async with serving(tmp_path) as coordinator, joined(coordinator.address) as client:
        names = await filled(coordinator, tmp_path, client.client_id)
        document = await describe(coordinator)
        expected = {f"{way.upper()} {path}" for path, ways in document["paths"].items() for way in ways}
        del document["paths"][STREAM]
        # There is no token on this loopback, so that everybody may do everything; the gate has tests of its own.
        for operations in document["paths"].values():
            for operation in operations.values():
                operation.pop("security", None)
        called = await asyncio.to_thread(call_all, f"http://{coordinator.http_address}", document, names)
    assert {*called, f"GET {STREAM}"} == expected


async def test_examples_are_shown_and_are_what_they_are_examples_of(tmp_path: Path) -> None:
    async with serving(tmp_path) as coordinator:
        schemas = (await describe(coordinator))["components"]["schemas"]
    for kind, example in EXAMPLES.items():
        assert schemas[kind.__name__]["examples"] == [example]
        sound = kind.model_validate(copy.deepcopy(example))
        # Nothing is left out of it, and nothing is in it that is not there.
        assert sound.model_dump(mode="json") == example


def example_of(schemas: dict[str, Any], schema: dict[str, Any]) -> Any:
    """Return the example that a schema, or that of its items, has; None if there is none."""
    schema = schema.get("items", schema)
    return schemas[schema["$ref"].rpartition("/")[2]].get("examples") if "$ref" in schema else None


async def test_every_operation_tells_of_its_errors_and_shows_what_it_answers(tmp_path: Path) -> None:
    async with serving(tmp_path) as coordinator:
        document = await describe(coordinator)
    schemas = document["components"]["schemas"]
    operations = {f"{way.upper()} {path}": one for path, ways in document["paths"].items() for way, one in ways.items()}
    for name, operation in operations.items():
        responses = operation["responses"]
        assert {"400", "413", "503"} <= responses.keys(), name
        # Of those for which a token is asked.
        assert ("security" in operation) == ("401" in responses) == ("429" in responses), name
        answer = (responses.get("200") or responses["201"]).get("content", {}).get("application/json")
        # The schema of a spec is no example of anything.
        if answer is not None and not name.endswith("/spec/schema"):
            assert example_of(schemas, answer["schema"]), name
