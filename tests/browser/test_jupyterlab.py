"""A chapter as a student meets it: opened in JupyterLab, in a real browser, run from top to bottom, a slider moved."""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from sd_teach.course import write_course

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (requirements.txt)")

CHAPTER = "06_vae.ipynb"  # a fast one, with a slider and formulas
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --disable-dev-shm-usage --no-first-run --disable-sync "
    "--disable-background-networking --disable-component-update"
).split()
ERROR = "Traceback (most recent call last)"
PATIENCE = 300_000  # milliseconds; only a machine with much else to do needs more than a few thousand

pytestmark = pytest.mark.skipif(not CHROMIUM, reason="no chromium here: apt-get install chromium")


@pytest.fixture(scope="module")
def lab(tmp_path_factory) -> str:
    """The address of a JupyterLab that serves a fresh copy of the course and has settings of its own."""
    folder = tmp_path_factory.mktemp("lab")
    write_course(folder / "course")
    homes = ["JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "JUPYTERLAB_WORKSPACES_DIR", "IPYTHONDIR"]
    environment = os.environ | {name: str(folder / name.lower()) for name in [*homes, "JUPYTERLAB_SETTINGS_DIR"]}
    # or it asks whether it may fetch news, in front of everything else
    settings = folder / "jupyterlab_settings_dir" / "@jupyterlab" / "apputils-extension"
    settings.mkdir(parents=True)
    (settings / "notification.jupyterlab-settings").write_text('{"fetchNews": "false", "checkForUpdates": false}')
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    options = (
        f"--no-browser --allow-root --ServerApp.ip=127.0.0.1 --ServerApp.port={port} --ServerApp.port_retries=0 "
        "--IdentityProvider.token= --ServerApp.password="
    )
    command = [sys.executable, "-m", "jupyterlab", *options.split(), f"--ServerApp.root_dir={folder / 'course'}"]
    url = f"http://127.0.0.1:{port}"
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            _wait_for(f"{url}/api/status", server, folder / "log")
            yield url
        finally:
            server.terminate()
            server.wait(timeout=30)


def _wait_for(url: str, server: subprocess.Popen, log: Path) -> None:
    end = time.monotonic() + PATIENCE / 1000
    while time.monotonic() < end and server.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.1)
    pytest.fail(f"JupyterLab does not answer:\n{log.read_text()[-2000:]}")


@pytest.fixture(scope="module")
def notebook(lab):
    """The chapter's panel in the page, all of its cells run."""
    with playwright.sync_playwright() as engine:
        browser = engine.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page()
        page.set_default_timeout(PATIENCE)
        page.goto(f"{lab}/lab/tree/{CHAPTER}?reset")
        # before there is a kernel the toolbar says idle already, and "Run All Cells" would run nothing
        status = page.locator('.jp-StatusBar-TextItem[title^="Change kernel"]')
        playwright.expect(status).to_have_text(re.compile(r"^(?!No Kernel).*\| Idle$"), timeout=PATIENCE)
        for item in ("Run", "Run All Cells"):
            page.get_by_role("menuitem", name=item, exact=True).click()
        panel = page.locator(".jp-NotebookPanel:not(.lm-mod-hidden)")
        last = panel.locator(".jp-CodeCell .jp-InputArea-prompt").last
        ended = last.filter(has_text=re.compile(r"\[\d+\]:")).or_(
            panel.locator(".jp-OutputArea-output", has_text=ERROR)
        )
        ended.first.wait_for(state="attached")
        yield panel
        browser.close()


def pixels(picture) -> str:
    """A hash of the pixels that an <img> shows, not of the bytes it came in."""
    return picture.evaluate(
        """async image => {
            await image.decode();
            const canvas = document.createElement("canvas");
            [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
            const context = canvas.getContext("2d");
            context.drawImage(image, 0, 0);
            const shown = context.getImageData(0, 0, canvas.width, canvas.height).data;
            return new Uint8Array(await crypto.subtle.digest("SHA-256", shown)).toHex();
        }"""
    )


def test_every_cell_ran_without_an_error(notebook):
    assert notebook.locator(".jp-OutputArea-output", has_text=ERROR).all_text_contents() == []
    prompts = notebook.locator(".jp-CodeCell .jp-InputArea-prompt").all_text_contents()
    assert prompts == [f"[{n + 1}]:" for n in range(len(prompts))] and len(prompts) > 5
    assert notebook.locator(".jp-OutputArea-output img").count() > 2


def test_formulas_are_typeset(notebook):
    formulas = notebook.locator(".jp-MarkdownOutput mjx-container")
    assert formulas.count() > 5
    assert all(box["width"] > 2 and box["height"] > 2 for box in (formulas.nth(i).bounding_box() for i in range(5)))
    assert not [text for text in notebook.locator(".jp-MarkdownOutput").all_text_contents() if "$" in text]


def test_a_slider_changes_its_picture(notebook):
    scrubber = notebook.locator(".s-scrubber").first
    picture, handle = scrubber.locator("img"), scrubber.locator(".noUi-handle")
    frames, addresses = [pixels(picture)], [picture.get_attribute("src")]
    for key in ("ArrowRight", "ArrowLeft"):
        handle.focus()
        handle.press(key)
        playwright.expect(picture).not_to_have_attribute("src", addresses[-1], timeout=PATIENCE)
        frames.append(pixels(picture))
        addresses.append(picture.get_attribute("src"))
    assert frames[1] != frames[0] and frames[2] == frames[0]
