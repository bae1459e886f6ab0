"""What deploy/ and the compose files say, as Python values."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

ROOT = Path(__file__).parent.parent.parent
COMPOSE = ROOT / "docker-compose.yml"
GPU = ROOT / "docker-compose.gpu.yml"
DIGESTS = ROOT / "deploy" / "digests.env"
CHART = ROOT / "deploy" / "helm" / "choral"

CALL = re.compile(r"(?:^|[\s`'\"(/])choral(?:-client:\S+|-coordinator:\S+)? (?=([a-z].*)$)", re.M)

# In a process of its own: the library brings Go's runtime, which takes over a process's signals.
_HELM = """
import json, sys
import helm_python
values = json.load(sys.stdin)
report = helm_python.lint(sys.argv[1], values, strict=True)
problems = [message["error"] for message in report["messages"] if message["severity"] > 1] + report["errors"]
if problems:
    sys.exit("\\n".join(problems))
with helm_python.Chart.load(sys.argv[1]) as chart:
    chart.validate_schema(values)
    rendered = chart.render(values, name="fed", namespace="learning")
print("\\n---\\n".join(text for name, text in sorted(rendered.items()) if name.endswith(".yaml")))
"""


def read_yaml(text: str) -> list[Any]:
    """Return the documents of a file as Kubernetes reads them: in YAML 1.1, where 0440 is octal."""
    documents = []
    # One by one: the version holds for a single document.
    for part in re.split(r"^---$", text, flags=re.M):
        yaml = YAML(typ="safe", pure=True)
        yaml.version = (1, 1)
        documents.append(yaml.load(part))
    return [document for document in documents if document]


def services() -> dict[str, dict[str, Any]]:
    """Return the services of the compose file, with what they take over."""
    (document,) = read_yaml(COMPOSE.read_text(encoding="utf-8"))
    return dict(document["services"])


def helm(values: str) -> "subprocess.CompletedProcess[str]":
    """Lint the chart with the values, JSON, as strictly as can be, and render it: exit status, manifests, problems."""
    return subprocess.run(
        [sys.executable, "-c", _HELM, str(CHART)], input=values, capture_output=True, text=True, timeout=60
    )


def commands_in(text: str) -> Iterator[list[str]]:
    """Yield the words of each call of `choral`, or of its images, in a shell script or a text, without the program."""
    joined = re.sub(r"\s*\\\n\s*", " ", text)
    for match in CALL.finditer(joined):
        # A sign of the shell ends a call, and so do two blanks, before a remark.
        words = re.split(r"\s{2,}|[`;|>&)]", match.group(1))[0]
        yield [word.strip("\"'") for word in words.split()]
