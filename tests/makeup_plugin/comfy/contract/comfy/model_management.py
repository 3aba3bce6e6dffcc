"""Whether the user has pressed "cancel", as far as our nodes use it."""


class InterruptProcessingException(Exception):
    pass


_interrupted = False


def interrupt_current_processing(value=True):
    global _interrupted
    _interrupted = value


def throw_exception_if_processing_interrupted():
    global _interrupted
    if _interrupted:
        _interrupted = False
        raise InterruptProcessingException
