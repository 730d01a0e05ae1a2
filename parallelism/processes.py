"""Do the processes of a program belong together, and what ends them when one is gone?

Before JAX joins them (its own join ends a process without a word that a user could read), they
call the roll over plain sockets at the coordinator's address: who is there, and with what. Process
0 answers everybody alike: go, or why not. The sockets stay open for the life of the program, so
that a process that dies is noticed at once, whatever the others are waiting for.
"""

import json
import os
import selectors
import socket
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from parallelism.errors import InputError

JOIN_SECONDS = 300.0  # how long the first waits for the last: clusters start jobs minutes apart
LOST = 1  # exit status: the run did not fail, and did not end

Carries = Mapping[str, str]  # what must be the same everywhere, by name: hashes, versions


@dataclass(eq=False)
class Roll:
    """The open lines of this process: of process 0 to every other, of another to process 0."""

    index: int
    lines: dict[int, socket.socket] = field(default_factory=dict)
    over: threading.Event = field(default_factory=threading.Event)

    def watch(self) -> None:
        """End this process when another is gone, from now on and in the background."""
        threading.Thread(target=self._watch, daemon=True, name="roll").start()

    def close(self) -> None:
        """Say goodbye: from here on an end is no loss."""
        self.over.set()
        for line in self.lines.values():
            _send(line, {"over": True})

    def _watch(self) -> None:
        with selectors.DefaultSelector() as waiting:
            for index, line in self.lines.items():
                waiting.register(line, selectors.EVENT_READ, index)
            while waiting.get_map():
                for key, _ in waiting.select():
                    said = _receive(self.lines[key.data])
                    if said is None or "lost" in said:
                        self._lost(key.data if said is None else said["lost"])
                        return
                    waiting.unregister(key.fileobj)  # it has ended well

    def _lost(self, index: int) -> None:
        if self.over.is_set():
            return
        for other, line in self.lines.items():
            if other != index:
                _send(line, {"lost": index})
        said = (
            f"error: process {index} is gone, so this one ends too; the same command goes on from "
            "the last checkpoint\n"
        )
        sys.stderr.write(said)  # in one piece: JAX's own threads log into the same stream
        sys.stderr.flush()
        os._exit(LOST)  # the main thread may wait for the lost process in a collective


def call_roll(
    address: str, *, processes: int, index: int, carries: Carries, seconds: float = JOIN_SECONDS
) -> Roll:
    """Meet the other processes within `seconds`; raises InputError, in every process that is
    there, where one is missing or carries something else than process 0."""
    host, _, port = address.rpartition(":")
    if not port.isdigit() or not 0 <= index < processes:
        raise InputError(
            "--distributed",
            f"{address}, process {index} of {processes}",
            "write JAX_COORDINATOR_ADDRESS as host:port and ids from 0 to one less than "
            "JAX_NUM_PROCESSES",
        )
    deadline = time.monotonic() + seconds
    if index:
        return _answer(host.strip("[]"), int(port), index, carries, deadline, seconds)
    return _ask(int(port), processes, carries, deadline, seconds)


def _ask(port: int, processes: int, carries: Carries, deadline: float, seconds: float) -> Roll:
    """Process 0: wait for all, compare, tell all."""
    roll, wrong = Roll(0), ""
    with socket.socket(socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET) as door:
        if socket.has_dualstack_ipv6():
            door.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        # JAX's own service listens at this port next, while these lines are open
        door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        try:
            door.bind(("", port))
        except OSError as error:
            raise InputError(
                "JAX_COORDINATOR_ADDRESS", port, f"write a free port ({error})"
            ) from None
        door.listen(processes)
        while len(roll.lines) < processes - 1:
            door.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                line, _ = door.accept()
            except TimeoutError:
                break
            line.settimeout(10.0)
            said = _receive(line)
            if said is None or not isinstance(said.get("index"), int):
                line.close()  # somebody else who knocked
                continue
            if said["index"] in roll.lines or not 0 < said["index"] < processes:
                wrong = f"two processes say that they are {said['index']} of {processes}"
                _send(line, {"refused": wrong})
                continue
            roll.lines[said["index"]] = line
            wrong = wrong or _difference(carries, said["carries"], said["index"])
    missing = [i for i in range(1, processes) if i not in roll.lines]
    if missing and not wrong:
        who = ", ".join(map(str, missing))
        wrong = f"process {who} of {processes} did not join within {seconds:g} seconds"
    for line in roll.lines.values():
        _send(line, {"refused": wrong} if wrong else {"go": True})
        line.settimeout(None)
    if wrong:
        raise InputError("--distributed", None, f"{wrong}; {_INSTEAD}")
    return roll


def _answer(
    host: str, port: int, index: int, carries: Carries, deadline: float, seconds: float
) -> Roll:
    """Any other process: find process 0, say what it carries, hear what all do."""
    while True:
        try:
            line = socket.create_connection((host, port), timeout=5.0)
            break
        except OSError:
            if time.monotonic() > deadline:
                raise InputError(
                    "--distributed",
                    None,
                    f"process 0 did not open {host}:{port} within {seconds:g} seconds; {_INSTEAD}",
                ) from None
            time.sleep(0.1)
    line.settimeout(max(1.0, deadline - time.monotonic()) + 10.0)  # it waits for the others too
    _send(line, {"index": index, "carries": dict(carries)})
    said = _receive(line)
    if said is None or "go" not in said:
        why = f"process 0 went away before all had joined; {_INSTEAD}"
        if said is not None and "refused" in said:
            why = f"{said['refused']}; {_INSTEAD}"
        raise InputError("--distributed", None, why)
    line.settimeout(None)
    return Roll(index, {0: line})


_INSTEAD = "start every process with the same code and command, each with its own JAX_PROCESS_ID"


def _difference(mine: Carries, theirs: Any, index: int) -> str:
    for name in sorted({*mine, *theirs}):
        if mine.get(name) != theirs.get(name):
            return (
                f"process {index} has another {name} ({theirs.get(name)}) than process 0 "
                f"({mine.get(name)})"
            )
    return ""


def _send(line: socket.socket, value: Any) -> None:
    try:
        line.sendall(json.dumps(value).encode() + b"\n")
    except OSError:
        return  # it is gone: its watcher says so


def _receive(line: socket.socket) -> dict[str, Any] | None:
    """One line of JSON; None where the other end is gone or says something else."""
    text = b""
    try:
        while not text.endswith(b"\n"):
            piece = line.recv(1)
            if not piece:
                return None
            text += piece
        found = json.loads(text)
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def agree(client: Any, *, processes: int, index: int, carries: Carries, seconds: float) -> None:
    """The same agreement through JAX's key-value store, for processes that a cluster joined."""
    client.key_value_set(f"ladder/carries/{index}", json.dumps(dict(carries)))
    first: dict[str, str] = {}
    for other in range(processes):
        try:
            said = client.blocking_key_value_get(f"ladder/carries/{other}", int(1000 * seconds))
        except Exception as error:  # jaxlib's own type, of a deadline
            raise InputError(
                "--distributed",
                None,
                f"process {other} of {processes} said nothing within {seconds:g} seconds "
                f"({str(error).splitlines()[0][:80]}); {_INSTEAD}",
            ) from None
        if other == 0:
            first = json.loads(said)
        if wrong := _difference(first, json.loads(said), other):
            raise InputError("--distributed", None, f"{wrong}; {_INSTEAD}")
