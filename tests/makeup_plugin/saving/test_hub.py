"""Saved pipelines on the hub: what is uploaded, and what is looked at before a download."""

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import constants

from faceclip.errors import CheckpointError
from makeup_plugin.pipeline import FaceMakeUpPipeline


def test_the_whole_directory_goes_to_the_hub(pipeline, tmp_path, monkeypatch):
    """What reaches the network calls, and what lies on disk at that moment; there is no network here."""
    calls = []

    def created(repo_id, **options):
        calls.append(("create", repo_id, options))
        return SimpleNamespace(repo_id=f"owner/{repo_id}")

    def uploaded(folder, repo_id, **options):
        calls.append(("upload", repo_id, options, {path.name for path in Path(folder).iterdir()}))

    monkeypatch.setattr("makeup_plugin.saving.storage.create_repo", created)
    monkeypatch.setattr("diffusers.pipelines.pipeline_utils.create_repo", created)
    monkeypatch.setattr(pipeline, "_upload_folder", uploaded)
    pipeline.save_pretrained(tmp_path / "mine", push_to_hub=True, private=True, token="secret", commit_message="first")
    create, upload = calls
    assert create == ("create", "mine", {"exist_ok": True, "private": True, "token": "secret"})
    assert upload[1:3] == ("owner/mine", {"token": "secret", "commit_message": "first"})
    assert upload[3] == {path.name for path in (tmp_path / "mine").iterdir()}
    assert upload[3] >= {"adapter.json", "lora.safetensors", "identity_channel", "unet", "model_index.json"}


def test_a_hub_repository_is_checked_before_it_is_downloaded(monkeypatch):
    """A web server on this machine plays the hub with a repository that has no adapter.json."""
    requested = []

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self):
            requested.append(self.path)
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.end_headers()

        do_GET = do_HEAD

        def log_message(self, *arguments):
            pass

    with HTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address, files = f"http://127.0.0.1:{server.server_port}", constants.HUGGINGFACE_CO_URL_TEMPLATE
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", files.replace(constants.ENDPOINT, address))
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        with pytest.raises(CheckpointError, match=r"owner/base has no adapter\.json.*from_base"):
            FaceMakeUpPipeline.from_pretrained("owner/base")
        server.shutdown()
    # The client may also ask for things of its own.
    assert {path for path in requested if "owner" in path} == {"/owner/base/resolve/main/adapter.json"}
