"""A Flower app whose rounds move arrays and do little else: FedAvg, clients that train nothing, no evaluation.

Flower stores objects under the hash of their content and skips what it holds already, so arrays that are sent back
unchanged would never be uploaded, and zeros would travel once. The model is random and every client adds its own number
to it: one pass over the array, the least that a client who trains anything does.
"""

# Where this file is checked Flower may be missing, and its decorators with it.
# mypy: disable-error-code="untyped-decorator"

import itertools
import json
import time
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

server_app = ServerApp()
client_app = ClientApp()


@server_app.main()
def serve(grid: Grid, context: Context) -> None:
    """Run all rounds and write their seconds to `result-path` as a JSON list, the first round first."""
    config = context.run_config
    client_count = int(config["client-count"])
    ends: list[float] = []

    def note_time(server_round: int, arrays: ArrayRecord) -> None:
        # Called before the first round and at the end of each one.
        ends.append(time.perf_counter())

    strategy = FedAvg(
        fraction_evaluate=0.0,
        min_train_nodes=client_count,
        min_available_nodes=client_count,
    )
    model = np.random.default_rng(0).standard_normal(int(config["byte-count"]) // 4, dtype=np.float32)
    strategy.start(grid, ArrayRecord([model]), num_rounds=int(config["rounds"]), evaluate_fn=note_time)

    seconds = [end - start for start, end in itertools.pairwise(ends)]
    Path(str(config["result-path"])).write_text(json.dumps(seconds))


@client_app.train()
def reply(message: Message, context: Context) -> Message:
    """Answer with the model plus this client's number."""
    (model,) = message.content.array_records["arrays"].to_numpy_ndarrays()
    arrays = ArrayRecord([model + np.float32(int(context.node_config["partition-id"]) + 1)])
    content = RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": 1})})
    return Message(content=content, reply_to=message)
