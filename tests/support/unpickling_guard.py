"""Runs a module of mailraft so that nothing is unpickled in its process without a trace.

    python -P unpickling_guard.py RECORDS MODULE [ARGUMENT ...]
    python -P unpickling_guard.py RECORDS MODULE --serve

The second way saves the imports of many starts. It reads orders, a line each: JSON of the arguments
and of the file that gets the output. For each it forks a process, prints its number, and when it
has ended its status; only then the next order may come. The process inherits the standard input.

The folder RECORDS gets a file armed-PID when the guard stands. At the first unpickling it gets
unpickled-PID with the stack, and the process ends at once with UNPICKLED_STATUS.

Guarded: the functions and classes of pickle and _pickle, for whoever looks them up from now on, and
every lookup of a global, by whatever unpickler (PEP 578). Imports nothing of ours.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import sys
import traceback
from pathlib import Path
from typing import Any, NoReturn

UNPICKLED_STATUS = 86
ARMED, UNPICKLED = "armed-", "unpickled-"
# What takes long to import; none of it starts threads, which would not survive a fork.
WARM = ("mailraft.cluster.compose", "mailraft.node.server", "mailraft.router.service", "uvloop")


def arm(records: Path) -> None:
    """Set the guard up in this process. There is no way back."""
    # By name: what the tidy test forbids is to use it.
    slow: Any = importlib.import_module("pickle")
    fast: Any = importlib.import_module("_pickle")
    events = ("pickle.find_class",)

    def refuse(*_: object, **__: object) -> NoReturn:
        stack = "".join(traceback.format_stack())
        (records / f"{UNPICKLED}{os.getpid()}").write_text(stack, "utf-8")
        os._exit(UNPICKLED_STATUS)

    class Refusing(fast.Unpickler):  # type: ignore[misc]  # a class, for who derives from it
        load = refuse

    for module in (slow, fast):
        module.loads = module.load = refuse
        module.Unpickler = Refusing
    slow._loads = slow._load = slow._Unpickler.load = refuse
    sys.addaudithook(lambda event, _: refuse() if event in events else None)
    (records / f"{ARMED}{os.getpid()}").touch()


def serve(records: Path, module: str) -> None:
    """Carry out orders until the standard input ends."""
    for name in WARM:
        importlib.import_module(name)
    for order in iter(sys.stdin.readline, ""):
        arguments, output = json.loads(order)
        pid = os.fork()
        if not pid:
            _become(records, module, arguments, output)
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


def _become(records: Path, module: str, arguments: list[str], output: str) -> NoReturn:
    """Be the process that was ordered."""
    log = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    (records / f"{ARMED}{os.getpid()}").touch()
    status: object = 1
    try:
        _run(module, arguments)
        status = 0
    except SystemExit as told:
        status = told.code
    except Exception:  # noqa: BLE001  # a traceback in the log, as Python does it
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status if isinstance(status, int) else 0 if status is None else 1)


def _run(module: str, arguments: list[str]) -> None:
    sys.argv[1:] = arguments
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def main() -> None:
    """What a test starts instead of `python -m MODULE`."""
    records, module, *arguments = sys.argv[1:]
    arm(Path(records))
    if arguments == ["--serve"]:
        serve(Path(records), module)
    else:
        _run(module, arguments)


if __name__ == "__main__":
    main()
