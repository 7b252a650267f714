"""One measurement of one system in one process: what data.py starts, afresh each time.

    python benchmarks/measure.py '{"reader": "litdata", "kind": "read", …}'

The answer is a JSON object in the file `answer`.
"""

import importlib
import json
import sys
import time
from pathlib import Path
from typing import Any

WARM_BATCHES = 8
FIRST_BATCH = "first batch"
"""On a line of its own in stderr: what `-X importtime` tells after it does not count."""


def main() -> None:
    task = json.loads(sys.argv[1])
    reader = importlib.import_module(f"readers.{task['reader']}")
    try:
        answer = KINDS[task["kind"]](reader, task)
    except Exception as error:  # a system that fails is a result
        import traceback

        traceback.print_exc()
        answer = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"}
    Path(task["answer"]).write_text(json.dumps(answer))
    leave_ranks()


def prepare(reader: Any, task: dict[str, Any]) -> dict[str, Any]:
    """Seconds to prepare the text, in a process that has prepared a few documents before: imports do not count."""
    tokenizer, out, seq_len = Path(task["tokenizer"]), Path(task["prepared"]), task["seq_len"]
    reader.prepare(Path(task["few"]), tokenizer, out.with_name(out.name + "-few"), seq_len)
    start = time.perf_counter()
    seconds = reader.prepare(Path(task["text"]), tokenizer, out, seq_len)
    return {"seconds": seconds or time.perf_counter() - start}


def read(reader: Any, task: dict[str, Any]) -> dict[str, Any]:
    """Tokens per second, over as many epochs as `seconds` take; each epoch's first batches do not count."""
    batches, share = open_reader(reader, task)
    tokens, elapsed = 0, 0.0
    while elapsed < task["seconds"]:
        epoch = iter(batches)
        for _ in range(WARM_BATCHES):
            next(epoch)
        num, start = 0, time.perf_counter()
        for _ in epoch:
            num += 1
            if elapsed + time.perf_counter() - start > task["seconds"]:
                break
        if not num:
            raise ValueError(f"an epoch has no more than {WARM_BATCHES} batches")
        elapsed += time.perf_counter() - start
        tokens += num * share.rows * share.seq_len
    return {"tokens_per_second": tokens / elapsed}


def first(reader: Any, task: dict[str, Any]) -> dict[str, Any]:
    """Seconds from the start of the process until the first batch is there: of the epoch, or after `state`."""
    batches, share = open_reader(reader, task)
    inputs, labels = next(iter(batches))
    seconds = time.monotonic() - task["started"]
    print(FIRST_BATCH, file=sys.stderr, flush=True)
    check(inputs, labels, share)
    return {"seconds": seconds, "row": fingerprints(inputs)[0]}


def epoch(reader: Any, task: dict[str, Any]) -> dict[str, Any]:
    """List an epoch's rows from `state`, or from its beginning; rank 0 saves the state after `save_after` batches."""
    import pickle

    batches, share = open_reader(reader, task)
    rows: list[str] = []
    save_after = task.get("save_after")
    for number, (inputs, labels) in enumerate(batches, 1):
        check(inputs, labels, share)
        rows += fingerprints(inputs)
        if number == save_after:
            state = batches.state()
            if share.rank == 0:
                Path(task["save_to"]).write_bytes(pickle.dumps(state))
    return {"rows": rows}


def open_reader(reader: Any, task: dict[str, Any]) -> tuple[Any, Any]:
    from readers import Share

    share = Share(task["batch_size"], task["seq_len"], task["num_workers"], task["rank"], task["world"])
    state = None
    if task.get("state"):
        import pickle

        state = pickle.loads(Path(task["state"]).read_bytes())
    return reader.Reader(Path(task["prepared"]), Path(task["tokenizer"]), share, state), share


def check(inputs: Any, labels: Any, share: Any) -> None:
    for tensor in (inputs, labels):
        if str(tensor.dtype) != "torch.int64" or tuple(tensor.shape) != (share.rows, share.seq_len):
            raise ValueError(f"got {tensor.dtype} {tuple(tensor.shape)}")
    if not bool((inputs[:, 1:] == labels[:, :-1]).all()):
        raise ValueError("labels are not the next tokens")


def fingerprints(inputs: Any) -> list[str]:
    import hashlib

    return [hashlib.blake2b(row.numpy().tobytes(), digest_size=8).hexdigest() for row in inputs]


def leave_ranks() -> None:
    if "torch" in sys.modules:
        import torch.distributed as dist

        if dist.is_initialized():
            dist.destroy_process_group()


KINDS = {"prepare": prepare, "read": read, "first": first, "epoch": epoch}

if __name__ == "__main__":
    main()
