"""Processes that take turns: each version of the package is imported in one of its own, and works only while it is asked."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

OURS = Path(__file__).parents[1]


class Worker:
    """A script, run with the package of the folder `path`, whose `serve` answers what it is asked."""

    def __init__(self, script: str, arguments: list[str], path: Path):
        environment = os.environ | dict(PYTHONPATH=f"{path}{os.pathsep}{Path(__file__).parent}")
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", script, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )

    def ask(self, what: str, **arguments) -> dict:
        print(json.dumps(dict(arguments, what=what)), file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"a worker ended while it was asked for {what!r}: {self.process.args}")
        return json.loads(answer)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


def serve(**functions: Callable[..., dict]) -> None:
    """Answers the requests that come on stdin, a line of JSON each."""
    answers, sys.stdout = sys.stdout, sys.stderr  # version 0.4.0 prints while it samples
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(functions[request.pop("what")](**request)), file=answers, flush=True)
