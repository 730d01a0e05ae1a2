"""Do processes that do not belong together part with one line, and in bounded time?"""

import json
import socket
import subprocess
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
from jax._src.lib import _jax  # pyright: ignore[reportPrivateImportUsage]  the real store

from parallelism.errors import InputError
from parallelism.processes import LOST, Roll, agree, call_roll

SAME = {"spec": "aa", "code": "bb"}


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return s.getsockname()[1]


def meet(*calls: dict[str, Any], processes: int, seconds: float = 5.0) -> list[Roll | str]:
    """What each of these processes gets: its roll, or the line that ends it."""
    address = f"localhost:{free_port()}"
    with ThreadPoolExecutor(len(calls)) as pool:
        some: list[Future[Roll]] = [
            pool.submit(call_roll, address, processes=processes, seconds=seconds, **call)
            for call in calls
        ]
    out: list[Roll | str] = []
    for one in some:
        error = one.exception()
        assert error is None or isinstance(error, InputError)
        out.append(one.result() if error is None else str(error))
    return out


def test_all_who_carry_the_same_go_on_with_open_lines():
    rolls = meet(*({"index": i, "carries": SAME} for i in range(3)), processes=3)
    lines = [sorted(r.lines) for r in rolls if isinstance(r, Roll)]
    assert lines == [[1, 2], [0], [0]]


def test_a_process_that_never_joins_is_named_by_all_who_did():
    begun = time.monotonic()
    said = meet(
        {"index": 0, "carries": SAME}, {"index": 2, "carries": SAME}, processes=3, seconds=1.0
    )
    assert time.monotonic() - begun < 10
    for line in said:
        assert "process 1 of 3 did not join within 1 seconds" in str(line)


def test_nobody_at_the_address_is_said_in_bounded_time():
    (line,) = meet({"index": 1, "carries": SAME}, processes=2, seconds=0.5)
    assert "process 0 did not open localhost:" in str(line)


@pytest.mark.parametrize("name", ["spec", "code"])
def test_another_spec_or_code_is_told_to_all(name: str):
    other = {"index": 1, "carries": {**SAME, name: "cc"}}
    said = meet({"index": 0, "carries": SAME}, other, processes=2)
    for line in said:
        assert f"process 1 has another {name} (cc) than process 0" in str(line)


def test_two_of_one_id_are_refused():
    same = {"index": 1, "carries": SAME}
    said = meet({"index": 0, "carries": SAME}, same, same, processes=3, seconds=1.0)
    assert all("two processes say that they are 1 of 3" in str(line) for line in said)


@pytest.mark.parametrize(
    "other, wrong",
    [
        (SAME, None),
        ({**SAME, "code": "cc"}, "process 1 has another code"),
        (None, "process 1 of 2 said nothing within 1 seconds"),
    ],
)
def test_processes_of_a_cluster_agree_through_the_key_value_store(other, wrong):
    port = free_port()
    service = _jax.get_distributed_runtime_service(f"[::]:{port}", 1)
    client = _jax.get_distributed_runtime_client(f"localhost:{port}", 0)
    client.connect()
    try:
        if other is not None:
            client.key_value_set("ladder/carries/1", json.dumps(other))
        if wrong is None:
            agree(client, processes=2, index=0, carries=SAME, seconds=1)
        else:
            with pytest.raises(InputError, match=wrong):
                agree(client, processes=2, index=0, carries=SAME, seconds=1)
    finally:
        client.shutdown()
        service.shutdown()


MEMBER = """
import sys, time
from parallelism.processes import call_roll
index = int(sys.argv[2])
roll = call_roll(f"localhost:{sys.argv[1]}", processes=3, index=index, carries={}, seconds=20)
roll.watch()
print("here", flush=True)
if sys.stdin.readline() == "end\\n":
    roll.close()
    sys.exit(0)
time.sleep(60)
"""


@pytest.mark.parametrize("victim", [0, 2])
def test_a_killed_process_ends_the_others_with_one_line_that_names_it(victim: int):
    port = str(free_port())
    all_three = [
        subprocess.Popen(
            [sys.executable, "-c", MEMBER, port, str(i)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for i in range(3)
    ]  # fmt: skip
    try:
        for p in all_three:
            assert p.stdout is not None and p.stdout.readline() == "here\n"
        all_three[victim].kill()
        for i, p in enumerate(all_three):
            _, err = p.communicate(timeout=20)
            if i != victim:
                assert p.returncode == LOST
                assert err.splitlines() == [
                    f"error: process {victim} is gone, so this one ends too; the same command "
                    "goes on from the last checkpoint"
                ]
    finally:
        for p in all_three:
            p.kill()


def test_a_process_that_ends_well_is_no_loss():
    port = str(free_port())
    both = [
        subprocess.Popen(
            [sys.executable, "-c", MEMBER, port, str(i)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for i in range(3)
    ]  # fmt: skip
    try:
        for p in both:
            assert p.stdout is not None and p.stdout.readline() == "here\n"
        for p in both:  # one after another: those who stay must not mind
            _, err = p.communicate("end\n", timeout=20)
            assert (p.returncode, err) == (0, "")
    finally:
        for p in both:
            p.kill()
