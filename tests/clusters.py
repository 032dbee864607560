"""A Ray cluster of real processes on loopback: a head and two worker nodes, each with one core."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OBJECTS = 120_000_000  # bytes of each node's object store
# Ray 2.60 starts a cluster that asks for a token, older ones do not read these.
TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}


def family(pid: int) -> list[int]:
    """A process and all below it."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            children.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    found = [pid]
    for one in found:
        found += children.get(one, [])
    return found


def alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


class Node:
    def __init__(self, *arguments: str, **env: str) -> None:
        command = [str(Path(sys.executable).parent / "ray"), "start", "--block", "--num-cpus=1"]
        command += [f"--object-store-memory={OBJECTS}", "--disable-usage-stats", *arguments]
        own = {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "RAY_DISABLE_DOCKER_CPU_WARNING": "1"}
        where = {**os.environ, **TOKEN, **own, **env}
        self.process = subprocess.Popen(command, env=where, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def kill(self) -> None:
        """As the power going: every process of the node at once."""
        for pid in family(self.process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()


class Cluster:
    """env: of every process of the cluster."""

    def __init__(self, workers: int = 2, **env: str) -> None:
        self.env = env
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.folder = Path(tempfile.mkdtemp(prefix="mr", dir="/tmp"))  # short: Ray's sockets lie in it
        self.address = f"127.0.0.1:{port}"
        self.head = Node("--head", f"--port={port}", f"--temp-dir={self.folder}", "--include-dashboard=false", **env)
        self.workers: list[Node] = []
        try:
            for _ in range(workers):
                self.add()
        except BaseException:
            self.close()
            raise

    def add(self) -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(self.address.split(":"), 1):
                break
            time.sleep(0.2)
        time.sleep(1)
        self.workers.append(Node(f"--address={self.address}", **self.env))
        self.wait(len(self.workers) + 1)

    def wait(self, nodes: int) -> None:
        code = f"import ray; ray.init('{self.address}', logging_level=50, log_to_driver=False)"
        code += "; print(int(ray.cluster_resources().get('CPU', 0)))"
        env = {**os.environ, **TOKEN}
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline:
            done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=env)
            if done.stdout.strip() and int(done.stdout) >= nodes:
                return
        raise AssertionError(f"{nodes} nodes do not come up: {done.stderr}")

    def close(self) -> None:
        for node in (*self.workers, self.head):
            node.kill()
        shutil.rmtree(self.folder, ignore_errors=True)
