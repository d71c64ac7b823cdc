"""Processes that take turns: each version of the package is imported in one of its own, and works
only while it is asked."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

OURS = Path(__file__).parents[1]
CLASSES = {
    "diffusion": "ImageAutoregressiveDiffusion",
    "flow": "ImageAutoregressiveFlow",
    "flow_map": "ImageAutoregressiveFlowMap",
    "energy": "ImageAutoregressiveEnergy",
}
PEER_HEADS = ("diffusion", "flow")  # of version 0.4.0


def environment(path: Path) -> dict[str, str]:
    """The environment of a process that imports the package of the folder `path`."""
    paths = [str(path), str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    return os.environ | dict(PYTHONPATH=os.pathsep.join(filter(None, paths)))


class Worker:
    """A script, run with the package of the folder `path`, whose `serve` answers what it is asked.

    Further arguments are variables of its environment.
    """

    def __init__(self, script: str, arguments: list[str], path: Path, **variables: str):
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed by `close`
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", script, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            env=environment(path) | variables,
        )

    def ask(self, what: str, **arguments) -> dict:
        print(json.dumps(dict(arguments, what=what)), file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        if not answer:
            self.errors.seek(0)
            raise RuntimeError(
                f"a worker ended while it was asked for {what!r}: {self.process.args}\n"
                f"{self.errors.read()[-2000:]}"
            )
        return json.loads(answer)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.errors.close()


def serve(**functions: Callable[..., dict]) -> None:
    """Answers the requests that come on stdin, a line of JSON each."""
    answers, sys.stdout = sys.stdout, sys.stderr  # version 0.4.0 prints while it samples
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(functions[request.pop("what")](**request)), file=answers, flush=True)
