"""Read what Weights & Biases and MLflow stored on disk; servers that do not answer."""

import json
import socket
import struct
from pathlib import Path

_BLOCK = 1 << 15  # LevelDB's log format


def _records(path: Path) -> list[bytes]:
    content, place, records, parts = path.read_bytes(), 7, [], b""  # after wandb's own header
    while place + 7 <= len(content):
        if _BLOCK - place % _BLOCK < 7:
            place += _BLOCK - place % _BLOCK  # the rest of a block that is too short for a header
            continue
        length, kind = struct.unpack_from("<HB", content, place + 4)
        parts += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            records.append(parts)
            parts = b""
    return records


def wandb_runs(folder: Path) -> list[dict]:
    """Return the offline runs in a folder, oldest first: id, name, project, config, and rows of the history."""
    from wandb.proto.wandb_internal_pb2 import Record

    found = []
    for path in sorted(folder.glob("wandb/offline-run-*/*.wandb"), key=lambda path: path.stat().st_ctime_ns):
        run = {"history": [], "config": {}}
        for data in _records(path):
            record = Record.FromString(data)
            if record.HasField("run"):
                run |= {"id": record.run.run_id, "name": record.run.display_name, "project": record.run.project}
                run["config"] |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
            if record.HasField("history"):
                row = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
                run["history"].append({key: value for key, value in row.items() if not key.startswith("_")})
        found.append(run)
    return found


def mlflow_runs(uri: str) -> list[dict]:
    """Return the runs of the experiment `mimcl`: id, name, status, params, and (step, value) of each metric by time."""
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("mimcl")
    return [
        {
            "id": run.data.tags["mimcl"],
            "name": run.info.run_name,
            "status": run.info.status,
            "params": run.data.params,
            "metrics": {
                key: [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, key)]
                for key in run.data.metrics
            },
        }
        for run in client.search_runs([experiment.experiment_id])
    ]


def closed_port() -> str:
    """Return an address at which no server listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"http://127.0.0.1:{server.getsockname()[1]}"


def silent_server() -> tuple[socket.socket, str]:
    """Return a server that accepts connections and never answers, and its address."""
    server = socket.create_server(("127.0.0.1", 0))
    return server, f"http://127.0.0.1:{server.getsockname()[1]}"
