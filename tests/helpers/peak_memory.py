"""Measure how much memory a call takes, in a process of its own, whose peak nothing else has raised."""

import multiprocessing
import resource

_SERVER = multiprocessing.get_context("forkserver")


def peak_memory(function, *arguments):
    """Call a function in a new process; return its peak memory above that at the start, in MB, and its error's text."""
    mine, theirs = _SERVER.Pipe(duplex=False)
    process = _SERVER.Process(target=_call, args=(theirs, function, arguments))
    process.start()
    theirs.close()
    try:
        return mine.recv()
    finally:
        process.join()


def _call(connection, function, arguments):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    text = ""
    try:
        function(*arguments)
    except Exception as error:
        text = str(error)
    connection.send(((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024, text))
