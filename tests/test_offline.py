"""Nothing here may need the network: the block of conftest.py, and a picture made where there is none at all."""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
# TEST-NET-1 and the documentation prefix: addresses that belong to nobody
ABROAD = [
    (socket.AF_INET, ("192.0.2.1", 80)),
    (socket.AF_INET, ("example.org", 443)),
    (socket.AF_INET6, ("2001:db8::1", 80)),
]


@pytest.mark.parametrize("method", ["connect", "connect_ex"])
@pytest.mark.parametrize(("family", "address"), ABROAD)
def test_connecting_to_anything_but_loopback_is_refused(family, address, method):
    with socket.socket(family) as sock, pytest.raises(RuntimeError, match="network is blocked"):
        sock.settimeout(1)
        getattr(sock, method)(address)


@pytest.mark.parametrize(
    "host", ["example.org", b"example.org", "huggingface.co", "192.0.2.1", "localhost.example.org"]
)
def test_names_of_other_machines_are_not_looked_up(host):
    with pytest.raises(RuntimeError, match="network is blocked"):
        socket.getaddrinfo(host, 443)


def test_create_connection_is_refused():
    with pytest.raises(RuntimeError, match="network is blocked"):
        socket.create_connection(("example.org", 443), timeout=1)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
@pytest.mark.parametrize("method", ["connect", "connect_ex"])
def test_loopback_works(host, method):
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as client:
        assert not getattr(client, method)((host, server.getsockname()[1]))
        with server.accept()[0] as accepted:
            client.sendall(b"hello")
            assert accepted.recv(5) == b"hello"


def test_unix_sockets_work():
    with socket.socket(socket.AF_UNIX) as client:
        # nobody listens there: the system's own error, not the block's
        assert client.connect_ex("/nonexistent/socket") != 0


def test_subprocesses_are_told_to_stay_offline():
    assert os.environ["HF_HUB_OFFLINE"] == os.environ["TRANSFORMERS_OFFLINE"] == "1"
    assert not [name for name in os.environ if name.lower().endswith("_proxy")]


def test_a_picture_is_made_in_a_network_namespace_that_has_nothing_but_loopback(small_folder, tmp_path):
    if not shutil.which("unshare"):
        pytest.skip("no unshare on this system")
    probe = subprocess.run(["unshare", "-rn", "cat", "/proc/net/dev"], capture_output=True, text=True)
    if probe.returncode:
        pytest.skip(f"unshare -rn is not allowed here: {probe.stderr.strip()}")
    interfaces = [line.split(":")[0].strip() for line in probe.stdout.splitlines()[2:]]
    assert interfaces == ["lo"]

    out = tmp_path / "cat.png"
    command = [
        sys.executable,
        "-m",
        "sd_teach",
        "a cat",
        "--model",
        str(small_folder),
        "--steps",
        "2",
        "--out",
        str(out),
    ]
    # without HF_HUB_OFFLINE: as a student without a network runs it
    environment = {key: value for key, value in os.environ.items() if not key.endswith("_OFFLINE")}
    made = subprocess.run(["unshare", "-rn", *command], capture_output=True, text=True, cwd=ROOT, env=environment)
    assert (made.returncode, made.stdout) == (0, f"{out}\n"), made.stderr
    assert Image.open(out).size == (64, 64)
