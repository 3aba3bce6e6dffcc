"""A small suite on rendered references, and a peer that draws coloured noise."""

import pytest

from eval.benchmark.suite import PromptSettings, ReferenceSettings, SuiteSettings, build_suite


@pytest.fixture(scope="session")
def settings(tiny_dataset):
    """Makes the settings of a suite of two rendered persons with three prompts each."""

    def make(**changes):
        fields = {
            "name": "small",
            "licence": "CC0-1.0",
            "origin": "rendered for a test",
            "references": ReferenceSettings(kind="data", folder=tiny_dataset),
            "prompts": PromptSettings(captions=3),
            "size": (64, 64),
            "metrics": ["facesim/all@1", "detection@1", "prompt/judge@1", "clip_t/l14@1"],
        }
        return SuiteSettings(**fields | changes)

    return make


@pytest.fixture(scope="session")
def suite(settings):
    return build_suite(settings())


NOISE = '''
"""An adapter as a user writes it: noise of the seed."""

from pathlib import Path

import numpy as np
from PIL import Image


def make(options, device):
    def draw(references, prompt, seed, size):
        if "log" in options:
            with Path(options["log"]).open("a") as file:
                file.write(f"{seed}\\n")
        if seed % 1000 in options.get("fails", ()):
            raise ValueError(f"no picture of seed {seed}")
        pixels = np.random.default_rng([seed, len(prompt), *references[0].size]).integers(0, 256, (*size, 3))
        return Image.fromarray(pixels.astype(np.uint8))

    return draw
'''


@pytest.fixture(scope="session")
def adapter_folder(tmp_path_factory):
    """A folder on the path with the module `benchmark_noise`, whose factory is `make`."""
    folder = tmp_path_factory.mktemp("adapter")
    (folder / "benchmark_noise.py").write_text(NOISE)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield folder
