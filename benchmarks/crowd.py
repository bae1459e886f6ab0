"""Several clients in one process: what a benchmark starts where a process for each would not fit the machine.

Each is a whole client, with a key, a folder, a session and a training thread of its own. What they share is the
interpreter and the examples.
"""

import argparse
import asyncio
from pathlib import Path

import torch

from client.agent import Agent, AgentConfig
from client.connection import Endpoint
from client.data import load_local
from client.policy import Policy
from models import warm_up
from wire.memory import keep_freed_slices


async def join(address: str, data: str, folders: list[Path]) -> None:
    """Run one client for each folder until cancelled; a client's name is that of its folder."""
    local = load_local(data, 0.2, 0)
    async with asyncio.TaskGroup() as group:
        for folder in folders:
            config = AgentConfig(Endpoint(address), folder, folder.name, torch.device("cpu"), 1, Policy())
            group.create_task(Agent(config, local).run(), name=folder.name)


def main() -> None:
    """Read the command line and run the clients."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.crowd", description="Run several clients.")
    parser.add_argument("address", help="host and port of the coordinator")
    parser.add_argument("folders", nargs="+", type=Path, help="a folder for each client")
    parser.add_argument("--data", default="digits", help="the data that each of them has")
    arguments = parser.parse_args()
    warm_up()
    keep_freed_slices()
    torch.set_num_threads(1)
    asyncio.run(join(arguments.address, arguments.data, arguments.folders))


if __name__ == "__main__":
    main()
