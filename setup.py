"""The packages of the wheel: slurm/ and containers/ go into preproc, where preproc.run.resources looks for them."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["preproc*", "infer*"]), "preproc.slurm", "preproc.containers"],
    package_dir={"preproc.slurm": "slurm", "preproc.containers": "containers"},
)
