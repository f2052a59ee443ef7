"""Starts Hearth's Python worker: connects to the host, says hello, then serves one function.

With `--zygote` it does so in each of the processes that it forks (`hearth_worker.zygote`).

Kept this small because the program's main file is compiled at every start, unlike the package.
"""

import os
import sys


def main():
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path.insert(0, here)
    from hearth_worker import connection

    is_forked = sys.argv[1:] == ["--zygote"]
    if is_forked:
        from hearth_worker import zygote

        zygote.serve()
        del sys.argv[1:]
    # The package finds its own later imports by its __path__; the function gets a clean list.
    sys.path.remove(here)
    where = os.environ.pop("HEARTH_SOCKET", None)
    token = os.environ.pop("HEARTH_TOKEN", None)
    if not where:
        sys.exit("hearth-worker: HEARTH_SOCKET is not set; the host starts this program")
    connection.run(where, token, is_forked)


# multiprocessing imports this file again in the processes that a function spawns.
if __name__ == "__main__":
    main()
