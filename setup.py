"""What pyproject.toml cannot say: `sql/` travels inside the wheel as `cdc/sql`, and the compiled core is optional.

The compiled core (cdc/pgoutput/compiled.py) is built where there are Cython and a C compiler. Where something lacks,
the package installs all the same, and works without it.
"""

import os
from pathlib import Path

from setuptools import Extension, find_packages, setup

try:
    from Cython.Build import cythonize
except ImportError:
    cythonize = None

HERE = Path(__file__).parent

rooms = sorted({path.parent.name for path in HERE.glob("sql/*/*.sql")})


def compiled_core() -> list[Extension]:
    """The modules in Cython. A failure to build one is a warning (``optional``)."""
    if cythonize is None or os.environ.get("CDC_UNCOMPILED", "") not in ("", "0"):
        return []
    sources = sorted(path.relative_to(HERE) for path in HERE.glob("cdc/*/*.pyx"))
    extensions = [
        Extension(".".join(source.with_suffix("").parts), [str(source)], extra_compile_args=["-g0"], optional=True)
        for source in sources
    ]
    built: list[Extension] = cythonize(extensions, build_dir="build/cython", quiet=True)
    for extension in built:
        extension.optional = True  # cythonize makes others, and forgets it
    return built


setup(
    packages=[*find_packages(include=["cdc", "cdc.*"]), *(f"cdc.sql.{room}" for room in rooms)],
    package_dir={f"cdc.sql.{room}": f"sql/{room}" for room in rooms},
    package_data={"cdc": ["py.typed"], "cdc.*": ["*.pyi"], **{f"cdc.sql.{room}": ["*.sql"] for room in rooms}},
    ext_modules=compiled_core(),
)
