"""A process's wall clock is set while it runs; its other clocks, and the journals, stay right."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from chaos.environment import CHECKOUT

SAYS = """
import os, sys, time
from billing_tasks.model.ids import new_request_id, reserved_at_ms
from chaos.clock import now_ns

def tell(who):
    off = (reserved_at_ms(new_request_id()) - now_ns() // 1_000_000) / 1000
    print(who, round(off), round(time.time() - now_ns() / 1e9), *sys.argv[1:], flush=True)

tell("parent")
sys.stdin.readline()  # the clock has been set meanwhile
deadline = time.monotonic() + 20
while round(time.time() - now_ns() / 1e9) != -400 and time.monotonic() < deadline:
    time.sleep(0.02)
tell("parent")
if os.fork() == 0:
    tell("child")
    sys.stdin.readline()
    while round(time.time() - now_ns() / 1e9) != 0 and time.monotonic() < deadline:
        time.sleep(0.02)
    tell("child")
    os._exit(0)
os.wait()
"""


def test_a_clock_is_set_under_way_also_in_children(tmp_path: Path) -> None:
    (tmp_path / "says.py").write_text(SAYS)
    clock = tmp_path / "clock"
    clock.write_text("3600")
    argv = [sys.executable, "-m", "chaos.clock", str(clock), "says", "word"]
    path = f"{CHECKOUT}:{tmp_path}"
    with subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={"PYTHONPATH": path}, cwd=tmp_path
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        said = [process.stdout.readline()]
        for off in ("-400", "0"):
            clock.write_text(off)
            process.stdin.write("on\n")
            process.stdin.flush()
            said.append(process.stdout.readline())
            if off == "-400":
                said.append(process.stdout.readline())
    assert [line.split() for line in said] == [
        ["parent", "3600", "3600", "word"],
        ["parent", "-400", "-400", "word"],
        ["child", "-400", "-400", "word"],
        ["child", "0", "0", "word"],
    ]
    assert abs(time.time() - time.time_ns() / 1e9) < 1, "this process's own is right"
