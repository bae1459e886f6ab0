"""The card of a run's model: what it was made from, by whom, how they were protected, and how good it is.

Source: Mitchell et al., "Model Cards for Model Reporting", FAT* 2019, section 4. https://arxiv.org/abs/1810.03993
"""

from collections.abc import Sequence

from pydantic import BaseModel

from server.errors import ConflictError
from server.records import ClientRecord, Participation, RunRecord, RunState
from wire.secure import PrivacySpec
from wire.spec import RunSpec


class Site(BaseModel):
    """A client whose contributions are in a model."""

    client_id: str
    name: str
    data_kind: str
    example_count: int
    """Examples that it trains on, as it said when it joined last."""
    rounds: int
    """Rounds that it contributed to."""


class ModelCard(BaseModel):
    """What is to be known of a model."""

    run_id: str
    name: str
    state: RunState
    spec: RunSpec
    spec_sha256: str
    privacy: PrivacySpec
    """How the clients were protected."""
    sites: list[Site]
    """By name."""
    rounds: int
    """Committed rounds."""
    metrics: dict[str, float]
    """The last known value of each."""
    model_sha256: str
    """Of the model's vector, as the rounds name it."""
    code_version: str
    """Release of Choral that computed it, by the coordinator's own; empty where the earliest releases did."""
    started_time: float | None
    ended_time: float | None


def model_card(run: RunRecord, found: Sequence[Participation], clients: Sequence[ClientRecord]) -> ModelCard:
    """Return the card of a run's last committed model.

    Raises:
        ConflictError: There is none yet.
    """
    if run.round_number == 0:
        raise ConflictError(
            f"Run {run.run_id}: at least one round must be committed before its model has a card, got none."
        )
    known = {client.client_id: client for client in clients}
    sites = [_site(one, known.get(one.client_id)) for one in found if one.contributed]
    return ModelCard(
        run_id=run.run_id,
        name=run.spec.name,
        state=run.state,
        spec=run.spec,
        spec_sha256=run.spec.sha256,
        privacy=run.spec.privacy,
        sites=sorted(sites, key=lambda site: (site.name, site.client_id)),
        rounds=run.round_number,
        metrics=run.metrics,
        model_sha256=run.model_sha256,
        code_version=run.code_version,
        started_time=run.started_time,
        ended_time=run.ended_time,
    )


def _site(found: Participation, client: ClientRecord | None) -> Site:
    return Site(
        client_id=found.client_id,
        name=client.name if client else "",
        data_kind=client.data_kind if client else "",
        example_count=client.example_count if client else 0,
        rounds=found.contributed,
    )
