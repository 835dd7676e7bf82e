"""What pyproject.toml cannot say: `sql/`, at the top of the repository, travels inside the wheel as `cdc/sql`."""

from pathlib import Path

from setuptools import find_packages, setup

rooms = sorted({path.parent.name for path in Path(__file__).parent.glob("sql/*/*.sql")})

setup(
    packages=[*find_packages(include=["cdc", "cdc.*"]), *(f"cdc.sql.{room}" for room in rooms)],
    package_dir={f"cdc.sql.{room}": f"sql/{room}" for room in rooms},
    package_data={"cdc": ["py.typed"], **{f"cdc.sql.{room}": ["*.sql"] for room in rooms}},
)
