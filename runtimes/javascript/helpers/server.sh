#!/bin/bash
# Serves the function on port 3000. The host starts the worker and passes calls to it.
set -e
exec bash -c "exec ${OPEN_RUNTIMES_SERVER_COMMAND:-hearth-host}"
