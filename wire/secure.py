"""The part of a run spec that asks for secure aggregation."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from wire.validation import Strict

MILLION = 1_000_000


class SecureAggregationSpec(Strict):
    """How updates are masked, so that the coordinator learns their sum alone."""

    ring_bits: Literal[16, 32, 64] = 32
    """Width of the masked integers. Fewer bits are fewer bytes and a coarser grid."""
    coordinate_bound: float = Field(default=4.0, ge=2.0**-40, le=2.0**40)
    """Largest magnitude of one coordinate of a contribution; larger ones are clipped to it. The smaller, the finer the grid."""
    weight_cap: int = Field(default=1000, ge=1, le=1 << 29)
    """Largest weight; clients with more examples count as if they had this many. The smaller, the finer the grid."""
    corrupt_fraction: float = Field(default=0.1, ge=0, lt=1)
    """Part of the clients that may conspire with the coordinator without learning anything of the others."""
    dropout_fraction: float = Field(default=0.1, ge=0, lt=0.5)
    """Part of the clients that may fall out after the round has been closed to newcomers."""
    minimum_cohort: int = Field(default=3, ge=2)
    """Fewest honest clients that a sum must be of. 2 only where the sites' policies say `allow_small_cohort`."""
    cipher: Literal["aes256", "chacha20"] = "aes256"
    """What makes the masks. ChaCha20 is for clients whose processors have no AES; where all have it, AES is faster."""
    key_agreement: Literal["x25519", "x25519_mlkem768"] = "x25519"
    """How keys are agreed. With ML-KEM-768 beside X25519, a record of a session stays closed to a large quantum computer."""
    audit: bool = False
    """Whether clients sign the masked vectors that they upload. The signatures are kept with the round."""
    stage_seconds: float = Field(default=60.0, gt=0, le=86_400)
    """Longest time for each of the small exchanges, seconds."""
    metrics: list[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")]] = Field(
        default=["loss", "accuracy"], max_length=64
    )
    """Metrics that are summed; no others leave a client."""

    @model_validator(mode="after")
    def _once_each(self) -> Self:
        if len(set(self.metrics)) < len(self.metrics):
            raise ValueError(f"metrics must be named once each, got {', '.join(self.metrics)}")
        return self

    @property
    def corrupt_ppm(self) -> int:
        """`corrupt_fraction` in parts per million."""
        return round(self.corrupt_fraction * MILLION)

    @property
    def dropout_ppm(self) -> int:
        """`dropout_fraction` in parts per million."""
        return round(self.dropout_fraction * MILLION)


class PrivacySpec(Strict):
    """What is done so that updates say little of those who made them."""

    secure_aggregation: SecureAggregationSpec | None = None
    """Masks updates, so that the coordinator learns their sum alone."""
