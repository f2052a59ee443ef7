#!/usr/bin/env bash
# Serves the unpacked function on port 3000.
exec hearth-host
