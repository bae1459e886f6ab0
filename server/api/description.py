"""The description of the REST API (OpenAPI), where it has to say more than the routes do."""

from typing import Any

from fastapi import FastAPI

from server.api.examples import EXAMPLES
from server.problems import MEDIA_TYPE
from wire.spec import RunSpec

SPEC_PATHS = ("/runs", "/runs/validate")
"""Routes that take a run spec. It is read by `wire.spec`, which says in a sentence what is wrong with it."""


class DescribedAPI(FastAPI):
    """An application that describes errors as problem details, and the run spec by its own schema."""

    prefix = ""

    def openapi(self) -> dict[str, Any]:
        """Return the description, made once."""
        if self.openapi_schema is None:
            document = super().openapi()
            for operations in document["paths"].values():
                for operation in operations.values():
                    _describe_problems(operation["responses"])
            _allow_null(document["components"]["schemas"])
            for kind, example in EXAMPLES.items():
                document["components"]["schemas"][kind.__name__]["examples"] = [example]
            _describe_spec(document, [self.prefix + path for path in SPEC_PATHS])
        assert self.openapi_schema is not None
        return self.openapi_schema


def _describe_problems(responses: dict[str, Any]) -> None:
    for status, response in responses.items():
        if int(status) >= 400:
            response["content"] = {MEDIA_TYPE: response["content"].pop("application/json")}


def _allow_null(part: Any) -> None:
    """Let measured numbers be null: JSON has no other word for one that is infinite or none."""
    if isinstance(part, list):
        for item in part:
            _allow_null(item)
    elif isinstance(part, dict):
        for key, value in part.items():
            if key in ("additionalProperties", "items") and value == {"type": "number"}:
                part[key] = {"anyOf": [{"type": "number"}, {"type": "null"}]}
            else:
                _allow_null(value)


def _describe_spec(document: dict[str, Any], paths: list[str]) -> None:
    schemas, reference = document["components"]["schemas"], "#/components/schemas/Submitted"
    spec = RunSpec.model_json_schema(ref_template=reference + "{model}")
    schemas |= {f"Submitted{name}": schema for name, schema in spec.pop("$defs").items()}
    schemas["SubmittedRunSpec"] = spec
    for path in paths:
        body = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]
        body["schema"] = {"$ref": f"{reference}RunSpec"}
