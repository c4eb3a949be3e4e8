"""The real weights' way from the hub, against a hub of this test's own on 127.0.0.1: no half file ever counts."""

import errno
import hashlib
import os
import random
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import constants

from sd_teach import download
from sd_teach.download import SD_V1_5, HubFile, download_sd_v1_5, find_sd_v1_5

DATA = random.Random(0).randbytes(100_000)
ELSEWHERE = "check that HF_ENDPOINT, if set, names a server that has this file"


def file_of(data: bytes) -> HubFile:
    return HubFile("someone/model", "model.safetensors", len(data), hashlib.sha256(data).hexdigest(), "MADE-UP-1.0")


FILE = file_of(DATA)


class Hub(ThreadingHTTPServer):
    """Answers as the hub does: the repository's address redirects to another host, which knows ranges."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answer)
        self.data, self.told_size = DATA, None
        self.status = 302
        self.sends = 1 << 40  # bytes it sends before it drops every connection
        self.knows_ranges = True
        self.stalled, self.go_on = threading.Event(), threading.Event()
        self.stalls = False  # instead of dropping a connection
        self.seen = []  # method and range of each request

    @property
    def endpoint(self):
        return f"http://127.0.0.1:{self.server_port}"


class Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        self.answer()

    def answer(self):
        hub = self.server
        if self.path == f"/{FILE.repo}/resolve/main/{FILE.name}":
            self.send_response(hub.status)
            self.send_header("Location", f"http://localhost:{hub.server_port}/storage")
            self.send_header("X-Repo-Commit", "c" * 40)
            self.send_header("X-Linked-Etag", f'"{hashlib.sha256(hub.data).hexdigest()}"')
            self.send_header("X-Linked-Size", str(hub.told_size or len(hub.data)))
            self.send_header("Content-Length", "0")
            # noted before it is sent: the test may look as soon as the client has the answer
            if hub.status != 302 or self.command == "HEAD":
                hub.seen.append(f"{self.command} {hub.status}")
            self.end_headers()
            return
        asked = self.headers["Range"] if hub.knows_ranges else None
        hub.seen.append(f"{self.command} {self.headers['Range'] or 'all'}")
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
        body = hub.data[start:]
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(len(body)))
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{len(hub.data) - 1}/{len(hub.data)}")
        self.end_headers()
        sent = body[: hub.sends]
        hub.sends -= len(sent)
        self.wfile.write(sent)
        if len(sent) < len(body):
            self.wfile.flush()
            self.close_connection = True
            if hub.stalls:
                hub.stalled.set()
                hub.go_on.wait(60)


@pytest.fixture
def hub(monkeypatch):
    """A hub that has FILE, which this process takes for the real one."""
    server = Hub()
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # between two attempts of the library
    yield server
    server.go_on.set()
    server.shutdown()
    server.server_close()


def refused(cache, file=FILE) -> str:
    """The one line that download says no with; afterwards nothing in the cache may pass for the file."""
    with pytest.raises(ValueError) as caught:
        download_sd_v1_5(file, cache)
    assert find_sd_v1_5(file, cache) is None
    blobs = (file.folder(cache) / "blobs").glob("*")
    assert {path.suffix for path in blobs} <= {".incomplete", ".lock"}
    assert "\n" not in str(caught.value)
    return str(caught.value)


def url(hub):
    return f"{hub.endpoint}/{FILE.repo}/resolve/main/{FILE.name}"


def half(cache):
    return cache / "models--someone--model" / "blobs" / f"{FILE.sha256}.incomplete"


def test_the_file_is_stable_diffusions():
    place = "/stable-diffusion-v1-5/stable-diffusion-v1-5/resolve/main/v1-5-pruned-emaonly.safetensors"
    assert SD_V1_5.url.endswith(place)
    assert SD_V1_5.size == 4_265_146_304
    assert SD_V1_5.sha256 == "6ce0161689b3853acaa03779ec93eafe75a02f4ced659bee03f50797806fa2fa"
    assert "CreativeML OpenRAIL-M" in SD_V1_5.licence


def test_no_token_is_sent(hub, tmp_path, monkeypatch):
    """HF_ENDPOINT may name anybody's server."""
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    sent, answer = [], Answer.answer
    monkeypatch.setattr(Answer, "answer", lambda self: sent.append(self.headers["Authorization"]) or answer(self))
    download_sd_v1_5(FILE, tmp_path)
    assert len(sent) > 2 and set(sent) == {None}


def test_a_download_is_announced_and_arrives_whole(hub, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("TQDM_POSITION", "-1")  # the library's bar, though this is no terminal
    assert find_sd_v1_5(FILE, tmp_path) is None
    path = download_sd_v1_5(FILE, tmp_path)
    assert path.read_bytes() == DATA
    assert path.suffix == ".safetensors"
    assert not half(tmp_path).exists()
    told = capsys.readouterr().err
    for part in (url(hub), "MADE-UP-1.0", "0.00 GB", str(tmp_path), "GB free", "model.safetensors: 100%"):
        assert part in told


def test_what_is_in_the_cache_is_not_asked_for_again(hub, tmp_path):
    path = download_sd_v1_5(FILE, tmp_path)
    asked = len(hub.seen)
    assert find_sd_v1_5(FILE, tmp_path) == download_sd_v1_5(FILE, tmp_path) == path
    assert len(hub.seen) == asked


def test_a_good_hash_is_computed_once(hub, tmp_path, monkeypatch):
    path = download_sd_v1_5(FILE, tmp_path)
    monkeypatch.setattr(download, "sha256_of", None)
    assert find_sd_v1_5(FILE, tmp_path) == path


def test_the_librarys_own_downloads_count_once_verified(hub, tmp_path):
    path = Path(download.hf_hub_download(FILE.repo, FILE.name, cache_dir=tmp_path))
    assert find_sd_v1_5(FILE, tmp_path) == path


def test_an_interrupted_download_is_resumed_by_the_next_run(hub, tmp_path):
    hub.sends = 60_000
    why = "peer closed connection without sending complete message body (received 0 bytes, expected 40000)"
    assert refused(tmp_path) == (
        f"{url(hub)} cannot be fetched ({why}): check the network, then run this again to go on where it stopped"
    )
    assert half(tmp_path).read_bytes() == DATA[:60_000]
    hub.sends, hub.seen = 1 << 40, []
    assert download_sd_v1_5(FILE, tmp_path).read_bytes() == DATA
    assert hub.seen == ["HEAD 302", "GET bytes=60000-", "HEAD 302"]


def test_a_server_that_ignores_ranges_sends_all_again(hub, tmp_path):
    half(tmp_path).parent.mkdir(parents=True)
    half(tmp_path).write_bytes(DATA[:60_000])
    hub.knows_ranges = False
    assert download_sd_v1_5(FILE, tmp_path).read_bytes() == DATA


def test_a_half_file_that_is_too_long_is_begun_again(hub, tmp_path):
    half(tmp_path).parent.mkdir(parents=True)
    half(tmp_path).write_bytes(DATA + DATA)
    assert download_sd_v1_5(FILE, tmp_path).read_bytes() == DATA


def test_a_killed_process_is_resumed_by_the_next_one_which_reads_hf_endpoint_and_hf_home(hub, tmp_path):
    hub.data = random.Random(1).randbytes(12 << 20)  # the library writes 10 MiB at once
    hub.sends, hub.stalls = 11 << 20, True
    file = file_of(hub.data)
    program = f"from sd_teach.download import *; print(download_sd_v1_5({file!r}))"
    environment = {key: value for key, value in os.environ.items() if not key.endswith("_OFFLINE")}
    environment |= {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path)}
    command = [sys.executable, "-c", program]
    options = {"env": environment, "cwd": Path(__file__).parents[1], "stdout": subprocess.PIPE, "text": True}
    partial = tmp_path / "hub" / "models--someone--model" / "blobs" / f"{file.sha256}.incomplete"
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, **options) as first:
        assert hub.stalled.wait(60)
        while first.poll() is None and partial.stat().st_size < 10 << 20:
            threading.Event().wait(0.01)
        first.kill()
    hub.sends, hub.seen = 1 << 40, []
    second = subprocess.run(command, stderr=subprocess.PIPE, **options)
    assert second.returncode == 0, second.stderr
    assert Path(second.stdout.strip()).read_bytes() == hub.data
    assert f"GET bytes={10 << 20}-" in hub.seen
    assert "0.01 GB of it here already" in second.stderr


def test_a_wrong_hash_is_refused_and_deleted(hub, tmp_path):
    hub.data = bytes(len(DATA))
    wrong = hashlib.sha256(hub.data).hexdigest()
    assert refused(tmp_path) == (
        f"{url(hub)} came broken (sha256 {wrong} instead of {FILE.sha256}), deleted: run this again, or {ELSEWHERE}"
    )
    assert not half(tmp_path).exists()
    hub.data = DATA
    assert download_sd_v1_5(FILE, tmp_path).read_bytes() == DATA


def test_a_wrong_size_is_refused_before_anything_is_fetched(hub, tmp_path):
    hub.data = DATA[:-1]
    assert refused(tmp_path) == f"{url(hub)} has 99,999 bytes instead of 100,000: {ELSEWHERE}"
    assert hub.seen == ["HEAD 302"]


def test_a_body_of_another_size_than_told_is_refused(hub, tmp_path):
    hub.data, hub.told_size = DATA[:-1], len(DATA)
    assert refused(tmp_path) == f"{url(hub)} came incomplete: run this again to go on where it stopped"


@pytest.mark.parametrize("status", [401, 403, 404, 500])
def test_a_refusal_of_the_server_is_told(hub, tmp_path, status):
    hub.status = status
    assert refused(tmp_path) == f"{url(hub)}: the server answered {status}: {ELSEWHERE}"


def test_a_file_the_repository_does_not_have_is_not_found(hub, tmp_path):
    file = HubFile(FILE.repo, "other.safetensors", FILE.size, FILE.sha256)
    hub.data = b""
    assert "other.safetensors" in refused(tmp_path, file)


def test_no_network_is_told(hub, tmp_path):
    hub.shutdown()
    hub.server_close()
    assert refused(tmp_path) == (
        f"{url(hub)} cannot be fetched ([Errno {errno.ECONNREFUSED}] Connection refused): check the network, "
        "then run this again to go on where it stopped"
    )


def test_offline_mode_is_told(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert (
        refused(tmp_path)
        == "model.safetensors cannot be fetched while HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set: unset it"
    )
    assert not hub.seen


def test_too_little_room_is_told_before_the_server_is_asked(hub, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: SimpleNamespace(free=30_000_000))
    cache, file = tmp_path / "new" / "cache", HubFile(FILE.repo, FILE.name, 100_000_000)
    cache.parent.mkdir()
    assert refused(cache, file) == (f"{cache} lacks 0.07 GB of room: make room, or set HF_HOME to a folder elsewhere")
    assert "0.03 GB free" in capsys.readouterr().err
    assert not hub.seen
    assert not cache.exists()


def test_room_is_needed_only_for_what_is_still_to_come(hub, tmp_path, monkeypatch):
    half(tmp_path).parent.mkdir(parents=True)
    half(tmp_path).write_bytes(DATA[:60_000])
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: SimpleNamespace(free=40_000))
    assert download_sd_v1_5(FILE, tmp_path).read_bytes() == DATA


def test_a_disk_that_fills_up_is_told_and_the_half_is_kept(hub, tmp_path, monkeypatch):
    def full(url, out, **_):
        out.write(DATA[:60_000])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(download, "http_get", full)
        assert refused(tmp_path) == (
            f"cannot write to {tmp_path}/models--someone--model (No space left on device): "
            "make room, or set HF_HOME to a folder elsewhere"
        )
    assert download_sd_v1_5(FILE, tmp_path).read_bytes() == DATA
    assert "GET bytes=60000-" in hub.seen


def test_a_folder_that_cannot_be_written_is_told(hub, tmp_path):
    (tmp_path / "cache").write_text("a file where the cache should be")
    with pytest.raises(ValueError, match=r"^cannot write to .*: set HF_HOME to a folder elsewhere$"):
        download_sd_v1_5(FILE, tmp_path / "cache")


def flip(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(("damage", "fault"), [(flip, "sha256"), (lambda path: path.write_bytes(b"half"), "4 bytes")])
def test_a_file_that_broke_in_the_cache_is_named_and_fetched_again(hub, tmp_path, capsys, damage, fault):
    path = download_sd_v1_5(FILE, tmp_path)
    damage(path)
    with pytest.raises(
        ValueError, match=rf"^{path} is broken \({fault}.*: get it again with python -m sd_teach download"
    ):
        find_sd_v1_5(FILE, tmp_path)
    assert download_sd_v1_5(FILE, tmp_path).read_bytes() == DATA
    assert f"{path} is broken ({fault}" in capsys.readouterr().err


def test_a_blob_that_broke_before_it_was_linked_is_named_and_fetched_again(hub, tmp_path):
    half(tmp_path).parent.mkdir(parents=True)
    half(tmp_path).with_suffix("").write_bytes(b"half")
    with pytest.raises(ValueError, match=r"is broken \(4 bytes instead of 100,000\): run this again$"):
        download_sd_v1_5(FILE, tmp_path)
    assert download_sd_v1_5(FILE, tmp_path).read_bytes() == DATA


def test_without_symbolic_links_one_copy_is_kept(hub, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.file_download.are_symlinks_supported", lambda *_: False)
    path = download_sd_v1_5(FILE, tmp_path)
    assert path.read_bytes() == DATA
    assert not half(tmp_path).with_suffix("").exists()
    assert find_sd_v1_5(FILE, tmp_path) == path
