"""The same trial in another process: what does not depend on history, addresses or hash seeds comes out the same.

The other process is started at the first question, with a hash seed of its own, and answers until this one ends. Only
this process's own messages travel through the pipes.
"""

from __future__ import annotations

import atexit
import os
import pickle
import struct
import subprocess
import sys
from functools import lru_cache
from typing import IO, Any

from conformance.cases import Case
from conformance.contract import Backend, Facet
from conformance.subject import Subject

Answer = dict[str, Any]


def answer(subject: Subject, case: Case) -> Answer:
    """Output and gradients, from fresh objects."""
    grads = subject.vjp(case)
    return {"y": grads.y, "dx": grads.dx, "dA": grads.da, "dB": grads.db}


def answer_elsewhere(subject: Subject, case: Case) -> Answer | None:
    """The same from another process; None where the backend is made of local functions, which cannot be sent.

    Raises:
        RuntimeError: the other process raised.
    """
    try:
        request = pickle.dumps((subject.backend, subject.facet, subject.dtype, case))
    except (pickle.PicklingError, AttributeError, TypeError):
        return None
    status, value = _server().ask(pickle.dumps(sys.path), request)
    if status != "done":
        raise RuntimeError(f"in another process: {value}")
    return value  # type: ignore[no-any-return]


class _Server:
    def __init__(self) -> None:
        environment = {**os.environ, "PYTHONHASHSEED": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
        command = [sys.executable, "-W", "ignore", "-m", "conformance.elsewhere"]
        self.process = subprocess.Popen(  # noqa: S603 - this module
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
        )
        atexit.register(self.close)

    def ask(self, *messages: bytes) -> tuple[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        for message in messages:
            _send(self.process.stdin, message)
        return pickle.loads(_receive(self.process.stdout))  # type: ignore[no-any-return] # noqa: S301

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


@lru_cache(maxsize=1)
def _server() -> _Server:
    return _Server()


def _send(pipe: IO[bytes], message: bytes) -> None:
    pipe.write(struct.pack("<Q", len(message)) + message)
    pipe.flush()


def _receive(pipe: IO[bytes]) -> bytes:
    """Raises EOFError where the other side has ended."""
    head = pipe.read(8)
    if len(head) < 8:
        raise EOFError("the other process ended")
    (size,) = struct.unpack("<Q", head)
    return pipe.read(size)


def _answered(request: bytes) -> bytes:
    try:
        backend, facet, dtype, case = pickle.loads(request)  # noqa: S301
        assert isinstance(backend, Backend)
        assert isinstance(facet, Facet)
        return pickle.dumps(("done", answer(Subject(backend, facet, dtype), case)))
    except Exception as error:  # noqa: BLE001 - told to the process that asked
        return pickle.dumps(("raised", f"{type(error).__name__}: {error}"))


def _serve() -> None:
    source, sink = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a backend prints is no answer
    while True:
        try:
            sys.path[:] = pickle.loads(_receive(source))  # noqa: S301
        except EOFError:
            return
        _send(sink, _answered(_receive(source)))


if __name__ == "__main__":
    _serve()
