"""Programs of the environment as forks of one process that has imported what takes them long.

The smoke config has some ninety jobs of a tenth of a second, each of which would import torch for
three seconds first. ``losskernel`` and ``snakemake`` in :attr:`Prefork.programs` have the same
arguments, folder, environment, streams and exit status as the installed ones, and import the
package anew from the ``PYTHONPATH`` that they are given.
"""

import array
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import traceback
from pathlib import Path

PRELOADED = (
    "torch",
    "torch._dynamo",
    "torchvision",
    "timm",
    "xarray",
    "h5netcdf",
    "scipy.stats",
    "pandas",
)
PRELOADED += ("matplotlib.pyplot", "seaborn", "sklearn.linear_model", "umap", "bokeh.plotting")
PRELOADED += ("arviz_stats", "nltk", "cleanlab", "safetensors.torch", "snakemake.cli")
PROGRAMS = {"losskernel": "losskernel.cli", "snakemake": "snakemake.cli"}

# Without site-packages, so that it starts in 20 ms.
CLIENT = """#!{python} -SE
import array, json, os, socket, sys
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    streams = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0, 1, 2]))]
    server.sendmsg([b"x"], streams)
    server.sendall(json.dumps([sys.argv, os.getcwd(), dict(os.environ)]).encode())
    server.shutdown(socket.SHUT_WR)
    status = server.recv(16)
sys.exit(int(status or 1))
"""


class Prefork:
    """The process that forks, which ends with this object's ``close`` or with this process."""

    def __init__(self, folder: Path):
        self.programs = folder / "bin"
        self.programs.mkdir(parents=True)
        address = str(folder / "socket")
        for name in PROGRAMS:
            program = self.programs / name
            program.write_text(CLIENT.format(python=sys.executable, address=address))
            program.chmod(0o755)
        command = [sys.executable, __file__, address]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd="/"
        )
        assert self._process.stdout.readline() == b"ready\n"

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()


def _serve(address: str) -> None:
    for name in PRELOADED:
        importlib.import_module(name)
    assert "losskernel" not in sys.modules
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # no zombies
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(address)
        server.listen()
        if os.fork() == 0:  # ends with the tests, and takes the server along
            os.read(0, 1)
            os.kill(os.getppid(), signal.SIGTERM)
            os._exit(0)
        print("ready", flush=True)
        while True:
            client = server.accept()[0]
            if os.fork() == 0:
                server.close()
                _run(client)
            client.close()


def _run(client: socket.socket) -> None:
    _, ((_, _, streams),), *_ = client.recvmsg(1, socket.CMSG_SPACE(12))
    for own, given in enumerate(array.array("i", streams)):
        os.dup2(given, own)
        os.close(given)
    with client.makefile("rb") as file:
        sys.argv, folder, environment = json.load(file)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:0] = environment.get("PYTHONPATH", "").split(os.pathsep)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        module = importlib.import_module(PROGRAMS[os.path.basename(sys.argv[0])])
        status = module.main()
    except SystemExit as end:
        status = end.code
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    client.sendall(str(int(status or 0)).encode())
    os._exit(0)


if __name__ == "__main__":
    _serve(sys.argv[1])
