"""Nothing is fetched unless it is asked for: the commands run with the network closed."""

import json
import shutil
import subprocess
import sys

from tiny import TINY_SETTINGS

# Python reports every attempt of its sockets and every look-up of a name to an audit hook.
_CODE = """
import json, socket, sys

def hook(event, arguments):
    if event == "socket.connect" and arguments[0].family == getattr(socket, "AF_UNIX", None):
        return
    if event in ("socket.connect", "socket.sendto", "socket.getaddrinfo", "socket.gethostbyname"):
        open(sys.argv[1], "a").write(f"{event} {arguments[1:]}\\n")
        raise OSError("the network is closed")

sys.addaudithook(hook)
from botvision.cli.main import main
for command in json.loads(sys.argv[2]):
    main(command)
"""


def _closed():
    """The command that closes the network for another one, where the system allows it."""
    command = ["unshare", "--map-root-user", "--net"]
    if shutil.which("unshare") is None:
        return []
    works = subprocess.run([*command, "true"], capture_output=True).returncode == 0
    return command if works else []


def run_offline(tmp_path, commands, code=""):
    """Run commands in a process of their own; return it, and what it wanted of the network."""
    trace = tmp_path / "trace"
    trace.touch()
    listed = json.dumps([list(map(str, command)) for command in commands])
    python = [sys.executable, "-c", _CODE + code, str(trace), listed]
    done = subprocess.run([*_closed(), *python], capture_output=True, text=True)
    return done, trace.read_text()


def test_training_evaluation_prediction_and_doctor_need_no_network(tiny_data, tmp_path):
    out = tmp_path / "run"
    settings = [*TINY_SETTINGS, "--workers", "1", "--max-steps", "2", "--out", out]
    done, trace = run_offline(
        tmp_path,
        [
            ["train", tiny_data, *settings],
            ["eval", out, tiny_data, "--workers", "1"],
            ["predict", out, tiny_data / "val"],
            ["doctor"],
        ],
    )
    assert trace == ""
    assert done.returncode == 0, done.stderr
    assert (out / "predictions" / "predictions.json").exists()


def test_an_attempt_would_be_seen(tmp_path):
    code = "import urllib.request\nurllib.request.urlopen('http://example.invalid')"
    done, trace = run_offline(tmp_path, [], code)
    assert done.returncode == 1 and "the network is closed" in done.stderr
    assert trace.startswith("socket.getaddrinfo")
