"""Starts Hearth's Python worker: connects to the host, says hello, then serves one function.

Kept this small because the program's main file is compiled at every start, unlike the package.
"""

import os
import sys


def main():
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path.insert(0, here)
    from hearth_worker import connection

    # The package finds its own later imports by its __path__; the function gets a clean list.
    sys.path.remove(here)
    path = os.environ.pop("HEARTH_SOCKET", None)
    if not path:
        sys.exit("hearth-worker: HEARTH_SOCKET is not set; the host starts this program")
    connection.run(path)


# multiprocessing imports this file again in the processes that a function spawns.
if __name__ == "__main__":
    main()
