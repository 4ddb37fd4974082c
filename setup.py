"""Build steps that pyproject.toml cannot express: the version, which is the extension's, the Cython
modules, and a copy of the extension's sources inside the package, from which `pybq.serve()` builds
it anywhere."""

import re
import shutil
from glob import glob
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_py import build_py

FLAGS = ["-std=c11", "-O3", "-ffp-contract=off"]  # no contraction: see extension/core/bqkernel.h


def read_version() -> str:
    """The one place where it is written."""
    control = Path("extension/bq.control").read_text()
    found = re.search(r"^default_version = '(.*)'$", control, re.MULTILINE)
    if found is None:
        raise ValueError("expected a line default_version = '...' in extension/bq.control")
    return found[1]


class BuildWithSources(build_py):
    """Also copy what the extension is built from to pybq/_source."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return  # a checkout has the sources beside the package
        target = Path(self.build_lib, "pybq", "_source")
        shutil.rmtree(target, ignore_errors=True)
        for pattern in (
            "extension/Makefile",
            "extension/*.control",
            "extension/**/*.[ch]",
            "sql/*.sql",
        ):
            for name in sorted(glob(pattern, recursive=True)):
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(name, target / name)


setup(
    version=read_version(),
    cmdclass={"build_py": BuildWithSources},
    ext_modules=cythonize(
        [
            Extension(
                "pybq._codes.core",
                ["pybq/_codes/core.pyx", *sorted(glob("extension/core/*.c"))],
                include_dirs=["extension/core"],
                depends=sorted(glob("extension/core/*.h")),
                extra_compile_args=FLAGS,
            ),
            Extension(
                "pybq._loading.copy",
                ["pybq/_loading/copy.pyx"],
                extra_compile_args=FLAGS,
            ),
        ],
        build_dir="build/cython",
    ),
)
