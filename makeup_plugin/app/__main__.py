"""The page in the browser.

python -m makeup_plugin.app [--model DIR]
"""

import importlib.util
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from faceclip.cpu.waiting import choose_waiting
from faceclip.errors import ConfigError
from faceclip.settings import run, setting


@dataclass(kw_only=True)
class AppSettings:
    """Which pipeline the page uses, and where the page is served. There is no public link."""

    model: str = setting("tiny", "pipeline: a folder, a hub id, or the one that ships", path=True)
    host: str = setting("127.0.0.1", "address to listen on; 0.0.0.0 is every network of this machine")
    port: int = setting(7860, "to listen on", least=1, below=2**16)
    queue: int = setting(8, "drawings that may wait; further visitors are asked to come again", least=1)
    pictures: int = setting(4, "most pictures of one drawing", least=1)
    upload_megabytes: int = setting(20, "largest file that a visitor may send", least=1)
    browser: bool = setting(False, "open the page in a browser")
    device: str = setting("auto", "cpu, cuda, …; auto: a GPU where there is one")
    dtype: Literal["float32", "bfloat16", "float16"] = setting("float32", "precision of the weights")


def serve(settings: AppSettings) -> None:
    """Loads the pipeline and serves the page until Ctrl-C."""
    if importlib.util.find_spec("gradio") is None:
        raise ConfigError("the page needs gradio: install the extra by `pip install 'faceclip-makeup[app]'`")
    from PIL import Image

    from makeup_plugin.loading import load_pipeline

    pipeline = load_pipeline(settings.model, device=settings.device, dtype=settings.dtype, key="--device")
    with tempfile.TemporaryDirectory(prefix="face-makeup-") as folder:
        # gradio reads this variable when it is imported: uploads and results lie in a folder that nobody else reads.
        os.environ["GRADIO_TEMP_DIR"] = folder
        from makeup_plugin.app.page import build_page, launch_options
        from makeup_plugin.app.painter import Limits, Painter

        limits = Limits(pictures=settings.pictures)
        Image.MAX_IMAGE_PIXELS = limits.pixels // 2  # Pillow, with which gradio opens the canvas, refuses twice as many
        page = build_page(Painter(pipeline, Path(folder), limits))
        page.queue(max_size=settings.queue, default_concurrency_limit=1)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # the folder goes then, too
        try:
            _, address, _ = page.launch(
                server_name=settings.host,
                server_port=settings.port,
                inbrowser=settings.browser,
                prevent_thread_lock=True,
                quiet=True,
                **launch_options(upload_megabytes=settings.upload_megabytes),
            )
        except OSError as error:
            raise ConfigError(
                f"--port {settings.port}: is in use, or {settings.host} cannot be listened on; give another --port or"
                " --host"
            ) from error
        print(f"the page is at {address} (Ctrl-C ends it)", flush=True)
        threading.Event().wait()


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of `python -m makeup_plugin.app`; returns the exit status."""
    choose_waiting()
    return run(serve, AppSettings, arguments, flags=True)


if __name__ == "__main__":
    sys.exit(main())
