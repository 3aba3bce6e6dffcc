"""Tensors and addresses on the web as pictures."""

import io
import ipaddress
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from PIL import Image

from faceclip.errors import ConfigError, ImageTooLargeError, UnreadableImageError
from makeup_plugin.calls.pictures import readable
from makeup_plugin.remote import fetch_picture, is_public

PIXELS = np.random.default_rng(3).integers(0, 255, (8, 10, 3), dtype=np.uint8)


class Pages(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path.startswith("/to?"):
            self.send_response(302)
            self.send_header("Location", self.path.removeprefix("/to?"))
            self.end_headers()
            return
        self.send_response(200 if self.path == "/a.png" else 404)
        self.end_headers()
        if self.path == "/a.png":
            buffer = io.BytesIO()
            Image.fromarray(PIXELS).save(buffer, "PNG")
            self.wfile.write(buffer.getvalue())

    def log_message(self, *_) -> None:
        pass


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    pages = ThreadingHTTPServer(("127.0.0.1", 0), Pages)
    threading.Thread(target=pages.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{pages.server_port}"
    pages.shutdown()
    pages.server_close()


def anywhere(address) -> bool:
    return True


def test_a_picture_is_fetched_through_redirects(server):
    for path in ("/a.png", "/to?/a.png", f"/to?{server}/to?/a.png"):
        found = fetch_picture(server + path, name="image", allowed=anywhere)
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(found))), PIXELS)


def test_what_is_not_public_is_refused(server):
    with pytest.raises(UnreadableImageError, match=r"^image: .*127\.0\.0\.1"):
        fetch_picture(server + "/a.png", name="image")
    with pytest.raises(UnreadableImageError, match=r"^image: .*localhost"):
        fetch_picture(server.replace("127.0.0.1", "localhost") + "/a.png", name="image")
    for text, public in (
        ("8.8.8.8", True),
        ("2001:4860:4860::8888", True),
        ("10.0.0.1", False),
        ("169.254.169.254", False),
        ("::1", False),
        ("::ffff:127.0.0.1", False),
        ("224.0.0.1", False),
        ("0.0.0.0", False),
    ):
        assert is_public(ipaddress.ip_address(text)) is public, text


def test_redirects_are_checked_again(server):
    seen = []

    def first_only(address) -> bool:
        seen.append(address)
        return len(seen) == 1

    with pytest.raises(UnreadableImageError, match="public"):
        fetch_picture(f"{server}/to?{server}/a.png", name="image", allowed=first_only)
    for target in ("file:///etc/passwd", "ftp://example.org/a.png", "gopher://example.org"):
        with pytest.raises(UnreadableImageError, match="http"):
            fetch_picture(f"{server}/to?{target}", name="image", allowed=anywhere)


@pytest.mark.parametrize(
    ("path", "limit", "error", "message"),
    [
        ("/gone.png", 10**6, UnreadableImageError, "404"),
        ("/a.png", 50, ImageTooLargeError, r"\b50 bytes"),
        ("/to?" * 9 + "/a.png", 10**6, UnreadableImageError, "redirects"),
    ],
)
def test_other_answers_are_named(server, path, limit, error, message):
    with pytest.raises(error, match=rf"^image: .*{message}"):
        fetch_picture(server + path, name="image", max_bytes=limit, allowed=anywhere)


@pytest.mark.parametrize(
    "url", ["http://", "http://a:b@example.org/", "http://example.org:99999/", "ftp://example.org/"]
)
def test_other_addresses_are_named(url):
    with pytest.raises(UnreadableImageError, match=r"^image: "):
        fetch_picture(url, name="image", allowed=anywhere)


def test_addresses_need_leave(pipeline, server):
    with pytest.raises(ConfigError, match=r"^image: .*allow_urls=True"):
        pipeline("a man", [None, server + "/a.png"])
    with pytest.raises(UnreadableImageError, match=r"^shading_map .*127\.0\.0\.1"):
        pipeline("a man", shading_map=server + "/a.png", allow_urls=True)
    with pytest.raises(ConfigError, match=r"^images: .*allow_urls"):
        pipeline.encode_identity(server + "/a.png")


def test_tensors_are_pictures(pipeline, photo, points):
    def draw(image, landmarks=points):
        arguments = {"landmarks": landmarks, "num_inference_steps": 1, "output_type": "np"}
        return pipeline("a man", image, generator=torch.Generator().manual_seed(0), **arguments).images

    tensor = torch.from_numpy(photo).permute(2, 0, 1)
    wanted = draw(photo)
    assert np.array_equal(draw(tensor), wanted) and np.array_equal(draw(tensor / 255), wanted)
    two = draw(torch.stack([tensor, tensor]), [points, points])
    assert np.array_equal(two, draw([photo, photo], [points, points]))
    for wrong, message in (
        (tensor[:2], r"\(2, 80, 80\)"),
        (tensor / 127.5 - 1, r"\[0, 1\]"),
        (tensor[0], r"\(80, 80\)"),
        (torch.full((3, 8, 8), float("nan")), r"\[0, 1\]"),
    ):
        with pytest.raises(ConfigError, match=f"^image: .*{message}"):
            readable("image", wrong)
