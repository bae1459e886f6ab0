"""How data is dealt to clients, as one text: KIND[,key=value...].

Such as `iid`, `by-key`, `dirichlet,alpha=0.3,minimum=10`, `shards,per_client=2` and `power-law,exponent=1.5`.
"""

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field, ValidationError

from client.data.fields import OPTION_START, read_pairs, shown
from simulation.errors import PartitionError
from wire.validation import Strict, explain


class Scheme(Strict):
    """A way to deal examples to clients. `str` gives its text, with every parameter."""

    kind: ClassVar[str]
    needs_classes: ClassVar[bool] = False

    minimum: int = Field(default=2, ge=1, strict=False)
    """Fewest examples of a client. Default: one to train on and one to hold out."""

    @classmethod
    def keys(cls) -> list[str]:
        """Return the names of the parameters, the one of all schemes last."""
        return sorted(cls.model_fields, key=lambda key: key in Scheme.model_fields)

    def __str__(self) -> str:
        return ",".join([self.kind, *(f"{key}={getattr(self, key)}" for key in self.keys())])


class Iid(Scheme):
    """At random, in equal numbers."""

    kind = "iid"


class ByKey(Scheme):
    """By natural key, such as the writer: a key never goes to two clients.

    With as many clients as keys, client k holds the k-th key; with fewer, each client holds the keys that a draw gave it.
    """

    kind = "by-key"


class Dirichlet(Scheme):
    """By class, in shares from a Dirichlet distribution.

    Sources: Hsu, Qi and Brown, "Measuring the Effects of Non-Identical Data Distribution for Federated Visual Classification",
    2019, https://arxiv.org/abs/1909.06335 (over classes); Yurochkin et al., "Bayesian Nonparametric Federated
    Learning of Neural Networks", ICML 2019, https://arxiv.org/abs/1905.12022 (over clients).
    """

    kind = "dirichlet"
    needs_classes = True

    alpha: float = Field(gt=0, strict=False)
    """Concentration: near 0, a client has one class, as far as examples of it last; far above the number of classes, all
    clients are alike."""
    over: Literal["classes", "clients"] = "classes"
    """What one draw spreads over. `classes`: each client's shares of the classes are Dir(alpha * prior), where the prior sums
    to 1, and clients are equal in size. `clients`: each class's shares of the clients are Dir(alpha, ..., alpha), and clients
    differ in size. The same alpha means much more skew in the first."""


class Shards(Scheme):
    """Sorted by class and cut into equal shards, of which each client gets some at random.

    Source: McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", AISTATS 2017, section 3.
    https://arxiv.org/abs/1602.05629
    """

    kind = "shards"
    needs_classes = True

    per_client: int = Field(default=2, ge=1, strict=False)
    """Shards of one client."""


class PowerLaw(Scheme):
    """At random, in sizes that fall with the client's number: the minimum, and a part of the rest that goes as 1 / (k + 1)^exponent."""

    kind = "power-law"

    exponent: float = Field(default=1.0, ge=0, le=100, strict=False)
    """How fast sizes fall. 0: equal sizes; 1: Zipf's law."""


SCHEMES: Mapping[str, type[Scheme]] = {scheme.kind: scheme for scheme in (Iid, ByKey, Dirichlet, Shards, PowerLaw)}
"""Every scheme, by kind."""


def parse_scheme(text: str) -> Scheme:
    """Read KIND[,key=value...].

    Raises:
        PartitionError: The kind or a key is unknown, or a value breaks a rule.
    """
    subject = f"Partition {text!r}"
    kind, *pairs = OPTION_START.split(text)
    if kind not in SCHEMES:
        raise PartitionError(
            f"{subject}: kind must be one of {', '.join(SCHEMES)}, got {shown(kind)}. Write KIND[,key=value...]."
        )
    try:
        return SCHEMES[kind].model_validate(read_pairs(subject, pairs, PartitionError))
    except ValidationError as error:
        keys = ", ".join(SCHEMES[kind].keys())
        raise PartitionError(f"{explain(error, subject)} The keys of {kind} are {keys}.") from error
