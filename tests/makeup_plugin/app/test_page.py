"""The page over HTTP, and in a real browser where there is one (Debian's package chromium, or any Chromium)."""

import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from importlib.resources import files
from io import BytesIO
from pathlib import Path
from urllib.parse import quote, urlparse

import numpy as np
import pytest
from PIL import Image

from makeup_plugin.app.__main__ import main
from makeup_plugin.marking.provenance import read_provenance
from tests.makeup_plugin.conftest import make_pipeline

MEGABYTES = 1


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """The served page's address; it ends with a slash."""
    folder = tmp_path_factory.mktemp("served")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(folder))
        pytest.importorskip("gradio", reason="the extra `app` is not installed")
        from makeup_plugin.app.page import build_page, launch_options
        from makeup_plugin.app.painter import Painter

        pipeline = make_pipeline()
        pipeline.register_to_config(default_call={"num_inference_steps": 4})
        page = build_page(Painter(pipeline, folder)).queue(max_size=2, default_concurrency_limit=1)
        options = launch_options(upload_megabytes=MEGABYTES)
        _, local, public = page.launch(server_name="127.0.0.1", prevent_thread_lock=True, quiet=True, **options)
        assert not public
        yield local
        page.close()


@pytest.fixture(scope="module")
def portrait(tmp_path_factory):
    path = tmp_path_factory.mktemp("photo") / "portrait.png"
    Image.open(files("skimage") / "data/astronaut.png").convert("RGB").crop((128, 0, 320, 192)).save(path)
    return path


@pytest.fixture
def browser_page(address):
    """The page in headless Chromium, and the hosts that it asked for anything."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium on this machine")
    play = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with play.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 1000})
        page.set_default_timeout(150_000)
        hosts = set()
        page.on("request", lambda request: hosts.add(urlparse(request.url).hostname))
        page.goto(address)
        yield page, hosts
        browser.close()


@pytest.mark.browser
def test_a_visitor_sends_a_photo_sees_the_face_and_draws(browser_page, address, portrait):
    page, hosts = browser_page
    page.set_input_files("#photos input[type=file]", str(portrait))
    page.wait_for_selector("#face img")
    page.fill("#prompt textarea", "a man")
    page.fill("#seed input", "7")
    page.click("#draw")
    picture = page.wait_for_selector("#pictures img")
    page.wait_for_selector("#map img")
    source = picture.get_attribute("src")
    page.wait_for_timeout(500)  # it takes its place
    inner, outer = picture.bounding_box(), page.locator("#pictures").bounding_box()
    assert inner["y"] >= outer["y"] and inner["y"] + inner["height"] <= outer["y"] + outer["height"]  # not cut off
    record = read_provenance(BytesIO(urllib.request.urlopen(source).read()))
    assert record["seed"] == 7 and record["has_reference_face"] and record["watermark"]
    page.click("text=Provenance of each file")
    assert "trainedAlgorithmicMedia" in page.wait_for_selector("#records").inner_text()
    assert hosts - {None} == {"127.0.0.1"}


@pytest.mark.browser
def test_a_visitor_paints_and_edits(browser_page, portrait):
    page, _ = browser_page
    page.click("button[role=tab]:has-text('Edit')")
    page.set_input_files("#canvas input[type=file]", str(portrait))
    for _ in range(4):  # on a busy machine the canvas has no picture yet, and says so: paint again
        page.wait_for_timeout(3000)  # the canvas draws the picture
        box = page.locator("#canvas canvas").first.bounding_box()
        page.mouse.move(box["x"] + box["width"] * 0.45, box["y"] + box["height"] * 0.35)
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] * 0.55, box["y"] + box["height"] * 0.4, steps=2)
        page.mouse.up()
        page.wait_for_timeout(500)
        page.fill("#edit-prompt textarea", "a man")
        page.click("#edit")
        page.wait_for_selector("#edited img, .toast-body")
        if page.query_selector("#edited img") is not None:
            break
    shown = page.wait_for_selector("#edited img")
    source = shown.get_attribute("src")
    page.wait_for_timeout(500)  # it takes its place
    inner, outer = shown.bounding_box(), page.locator("#edited").bounding_box()
    assert inner["y"] >= outer["y"] and inner["y"] + inner["height"] <= outer["y"] + outer["height"]  # not cut off
    file = BytesIO(urllib.request.urlopen(source).read())
    assert read_provenance(file)["has_reference_face"]
    edited = np.asarray(Image.open(file))
    before = np.asarray(Image.open(portrait).resize((32, 32), Image.Resampling.LANCZOS))
    changed = (edited != before).any(axis=2)
    assert changed.any() and not changed.all()  # only what was painted


@pytest.mark.browser
def test_a_visitor_is_told_what_is_wrong_with_a_photo(browser_page, tmp_path):
    page, _ = browser_page
    Image.new("RGB", (99, 99), "gray").save(tmp_path / "plain.png")
    page.set_input_files("#photos input[type=file]", str(tmp_path / "plain.png"))
    message = page.wait_for_selector(".toast-body").inner_text()
    assert "plain.png" in message and str(tmp_path.parent) not in message


@pytest.mark.parametrize("path", ["/etc/passwd", "/proc/self/environ", "README.md", "../README.md", __file__])
def test_no_file_of_the_server_is_readable(address, path):
    with pytest.raises(urllib.error.HTTPError) as found:
        urllib.request.urlopen(f"{address}gradio_api/file={quote(path)}")
    assert found.value.code in (403, 404)


def test_a_file_of_the_server_is_no_photo(address):
    photo = {"image": {"path": __file__, "meta": {"_type": "gradio.FileData"}}, "caption": None}
    given = ["a man", "", [photo], "largest", [], 1, 1, True, 1, 2, 1, 0, False]
    call = urllib.request.Request(
        f"{address}gradio_api/call/draw", json.dumps({"data": given}).encode(), {"Content-Type": "application/json"}
    )
    event = json.load(urllib.request.urlopen(call))["event_id"]
    answer = urllib.request.urlopen(f"{address}gradio_api/call/draw/{event}").read().decode()
    assert "event: error" in answer and "event: complete" not in answer


def test_an_upload_beyond_the_limit_is_rejected(address):
    body = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
    body += bytes(MEGABYTES * 2**20 + 1) + b"\r\n--x--\r\n"
    call = urllib.request.Request(
        f"{address}gradio_api/upload", body, {"Content-Type": "multipart/form-data; boundary=x"}
    )
    with pytest.raises(urllib.error.HTTPError) as found:
        urllib.request.urlopen(call)
    assert found.value.code == 413


@pytest.mark.parametrize(
    ("words", "place"),
    [
        (["--port", "0"], "--port"),
        (["--pictures", "0"], "--pictures"),
        (["--upload-megabytes", "0"], "--upload-megabytes"),
        (["--share", "true"], "--share"),
    ],
)
def test_a_mistake_in_the_command_is_one_line(capsys, words, place):
    assert main(words) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ") and place in message


def test_a_missing_extra_or_pipeline_is_named(capsys):
    assert main(["--model", "nowhere"]) == 2
    wanted = "faceclip-makeup[app]" if importlib.util.find_spec("gradio") is None else "nowhere"
    assert wanted in capsys.readouterr().err


def test_the_command_serves_the_page_and_leaves_no_file(tmp_path):
    pytest.importorskip("gradio", reason="the extra `app` is not installed")
    pipeline = make_pipeline()
    pipeline.register_modules(face_fitter=None)  # a class of the tests, which the command cannot load
    pipeline.save_pretrained(tmp_path / "model")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (tmp_path / "temporary").mkdir()
    words = ["--model", str(tmp_path / "model"), "--port", str(port)]
    environment = {**os.environ, "TMPDIR": str(tmp_path / "temporary"), "PYTHONPATH": str(Path(__file__).parents[3])}
    with subprocess.Popen(
        [sys.executable, "-m", "makeup_plugin.app", *words], stdout=subprocess.PIPE, text=True, env=environment
    ) as server:
        assert f"127.0.0.1:{port}" in server.stdout.readline()
        assert b"Face-MakeUp" in urllib.request.urlopen(f"http://127.0.0.1:{port}/").read()
        assert len(list((tmp_path / "temporary").glob("face-makeup-*"))) == 1
        server.send_signal(signal.SIGINT)
        assert server.wait(60) == 130
    assert not list((tmp_path / "temporary").glob("face-makeup-*"))
