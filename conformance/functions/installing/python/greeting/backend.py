"""Builds a wheel of one module: the least that an installer asks of a package (PEP 517)."""

import zipfile
from pathlib import Path

NAME = "conformance_greeting"
METADATA = f"Metadata-Version: 2.1\nName: {NAME}\nVersion: 1.0\n"
WHEEL = "Wheel-Version: 1.0\nGenerator: backend\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


def build_wheel(directory, config_settings=None, metadata_directory=None):
    file = f"{NAME}-1.0-py3-none-any.whl"
    info = f"{NAME}-1.0.dist-info"
    with zipfile.ZipFile(Path(directory, file), "w") as wheel:
        wheel.write(f"{NAME}.py")
        wheel.writestr(f"{info}/METADATA", METADATA)
        wheel.writestr(f"{info}/WHEEL", WHEEL)
        wheel.writestr(f"{info}/RECORD", "")
    return file
