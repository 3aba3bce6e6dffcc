"""ComfyUI's module of places, as far as our nodes use it."""

_output = "output"


def get_output_directory():
    return _output


def set_output_directory(folder):
    global _output
    _output = folder
