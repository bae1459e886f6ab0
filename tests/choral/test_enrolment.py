"""An enrolled federation of real processes: the officer's commands, a run, and a client that is revoked while it is connected."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.choral.command_line import Choral
from tests.federation import Federation, wait_until

SPEC: dict[str, Any] = {
    "name": "enrolled",
    "learner": {"name": "mlp", "inputs": [1, 8, 8]},
    "rounds": 1,
    "cohort": {"size": 2, "wait_seconds": 60},
}


def officer(choral: Choral, folder: Path) -> Callable[..., None]:
    """Return what runs one of the officer's commands, and then gives the new roster to everybody."""

    def run(*arguments: str) -> None:
        outcome = choral("enroll", *arguments, "--folder", str(folder / "enrolment"))
        assert outcome.code == 0, outcome.err
        shutil.copy(folder / "enrolment" / "roster.json", folder / "roster.new")
        (folder / "roster.new").replace(folder / "roster.json")

    return run


def test_enrolled_clients_play_a_run_and_a_revoked_one_ends(choral: Choral, tmp_path: Path) -> None:
    given = ("--roster", str(tmp_path / "roster.json"))
    enroll = officer(choral, tmp_path)
    with Federation(tmp_path, *given) as federation:
        enroll("init", "--federation", "lakes")
        coordinator = str(federation.coordinator_folder)
        enroll("set-coordinator", choral("enroll", "coordinator-key", "--folder", coordinator).lines[0])
        for name in ("site-0", "site-1"):
            enroll("add", name, choral("enroll", "key", "--folder", str(tmp_path / name)).lines[0])
        revoked = federation.start_client("site-0", "digits,blocks=0", *given)
        other = federation.start_client("site-1", "digits,blocks=1", *given)
        federation.start_coordinator()
        federation.wait_for_clients(2)
        federation.wait_for_end(federation.submit(SPEC))
        enroll("revoke", "site-0")
        assert revoked.wait(20) == 1
        identity = federation.client_id("site-0")
        assert (
            f"Error: The coordinator ended this session: client {identity} must be enrolled in 'lakes', "
            "got one that is revoked." in revoked.output
        )
        wait_until(lambda: federation.rest.get("/health")["client_count"] == 1, "one client to be left")
        assert other.is_alive
