"""The processes of the peers on a device."""

from contextlib import ExitStack

import torch

from benchmarks.peer_workers import environment
from benchmarks.peer_workers.pipe import Worker

OURS = "polylight"
NAMES = {
    OURS: "polylight",
    "dreamlens": "DreamLens 0.1.1",
    "lucent": "Lucent 0.1.8",
    "torch_dreams": "torch-dreams 4.0.0",
    "horama": "Horama 0.3.0",
}


class Workers:
    """The peers' processes on a device; those that cannot be started have failed, with a reason.

    Args:
        device: ``cpu`` or ``cuda``.
        stack: Ends them.
    """

    def __init__(self, device: str, stack: ExitStack) -> None:
        self.failures: dict[str, str] = {}
        self._workers: dict[str, Worker] = {}
        threads = torch.get_num_threads()
        variables = {"OMP_NUM_THREADS": str(threads)}
        if device == "cpu":
            # Lucent takes a GPU wherever there is one.
            variables["CUDA_VISIBLE_DEVICES"] = ""
        # They start together, which on two cores takes half the time.
        for peer in NAMES:
            try:
                self._workers[peer] = _start(peer, device, variables)
            except (OSError, RuntimeError) as error:
                self.failures[peer] = str(error)
            else:
                stack.callback(self._workers[peer].close)
        for peer, worker in self._workers.items():
            try:
                if (found := worker.ask("threads")) != threads:
                    raise RuntimeError(f"works with {found} threads, not with {threads}")
            except RuntimeError as error:
                self.failures[peer] = str(error)

    def __getitem__(self, peer: str) -> Worker:
        if peer in self.failures:
            raise RuntimeError(self.failures[peer])
        return self._workers[peer]


def _start(peer: str, device: str, variables: dict[str, str]) -> Worker:
    python = environment.create()
    if peer != OURS:
        environment.install(python, peer)
    command = [str(python), "-m", f"benchmarks.peer_workers.{peer}"]
    return Worker(command, variables, environment.DIRECTORY / f"{peer}-{device}.log")
