"""The bar that a node shows, as far as our nodes use it."""

_hook = None


def set_progress_bar_global_hook(function):
    global _hook
    _hook = function


class ProgressBar:
    def __init__(self, total, node_id=None):
        self.total, self.node_id = total, node_id

    def update_absolute(self, value, total=None, preview=None):
        self.total = self.total if total is None else total
        if _hook is not None:
            _hook(value, self.total, preview, node_id=self.node_id)
