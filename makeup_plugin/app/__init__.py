"""The pipeline as a page in the browser: `python -m makeup_plugin.app` (extra `app`)."""
