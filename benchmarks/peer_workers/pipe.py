"""Both ends of a worker: requests and replies are lines of JSON over its standard streams."""

import base64
import json
import os
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.machine import ROOT

Packed = dict[str, Any]


def pack(array: npt.NDArray[np.float32]) -> Packed:
    """Write an array as JSON values, bit for bit.

    Args:
        array: float32, of any shape.

    Returns:
        Its shape and its bytes in base64.
    """
    data = np.ascontiguousarray(array, dtype=np.float32)
    return {"shape": list(data.shape), "base64": base64.b64encode(data.tobytes()).decode()}


def unpack(packed: Packed) -> npt.NDArray[np.float32]:
    """The array that :func:`pack` wrote."""
    data = np.frombuffer(base64.b64decode(packed["base64"]), dtype=np.float32)
    return data.reshape(packed["shape"]).copy()


class Worker:
    """A process that does one thing after another, and sleeps in between.

    Args:
        command: Starts it; it has to end in :func:`serve`.
        environment: Variables that it has besides those of this process.
        log: Takes what it prints.
        patience: Seconds after which a request that has no reply has failed.
    """

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        log: Path,
        patience: float = 600.0,
    ) -> None:
        self._log, self._patience = log, patience
        with log.open("w") as file:
            self._process = subprocess.Popen(
                command,
                cwd=ROOT,
                # What it printed is in the log even if it is killed.
                env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
            )

    def ask(self, task: str, **arguments: Any) -> Any:
        """Let it do something, and wait for it.

        Args:
            task: One of those that it serves.
            arguments: JSON values.

        Returns:
            What the task returned, a JSON value.

        Raises:
            RuntimeError: If the task raised something, or the process ended or is too slow.
        """
        requests, replies = self._process.stdin, self._process.stdout
        assert requests is not None
        assert replies is not None
        late = threading.Event()

        def give_up() -> None:
            late.set()
            self._process.kill()

        timer = threading.Timer(self._patience, give_up)
        timer.start()
        try:
            requests.write(json.dumps({"task": task, **arguments}) + "\n")
            requests.flush()
            line = replies.readline()
        except BrokenPipeError:
            line = ""
        finally:
            timer.cancel()
        if late.is_set():
            raise RuntimeError(f"the worker was ended: no reply to {task!r} in {self._patience} s")
        if not line:
            status = self._process.wait()
            last = self._log.read_text().strip().rsplit("\n", 1)[-1]
            raise RuntimeError(f"the worker ended with status {status} in {task!r}: {last}")
        reply = json.loads(line)
        if "error" in reply:
            raise RuntimeError(reply["error"])
        return reply["result"]

    def close(self) -> None:
        """End it, whatever it is doing."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            # A request that it did not read is still on its way.
            with suppress(BrokenPipeError):
                if stream is not None:
                    stream.close()


def serve(tasks: Mapping[str, Callable[..., Any]]) -> None:
    """Do what is asked for on standard input, until it ends.

    Args:
        tasks: By name; each takes and returns JSON values. What one raises is its reply.
    """
    with os.fdopen(os.dup(1), "w") as replies:
        # What a peer prints would be taken for a reply.
        os.dup2(2, 1)
        for line in sys.stdin:
            request = json.loads(line)
            reply: dict[str, Any]
            try:
                reply = {"result": tasks[request.pop("task")](**request)}
            # A peer may raise anything; the others go on.
            except Exception as error:
                traceback.print_exc()
                reply = {"error": f"{type(error).__name__}: {error}"}
            print(json.dumps(reply), file=replies, flush=True)
