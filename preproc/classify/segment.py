"""Training the segmentation head: the labelled pixels and the networks wanted of them are put into a job, the engine
trains what is missing (in the site's container, or in this Python), and the networks are applied here."""

from __future__ import annotations

import io
import os
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infer.contract import (
    EXIT_BAD_INPUT,
    EXIT_OK,
    EXIT_TRY_AGAIN,
    Inputs,
    Plan,
    Run,
    SmaltiError,
    sha256_json,
    write_bytes,
)
from infer.contract.classification import SamplesManifest
from infer.contract.segment import (
    Ground,
    SegmentJob,
    SegmentNetwork,
    SegmentRecipe,
    SegmentScene,
    job_files,
    lattice,
    network_files,
)
from preproc.classify.folds import Folds
from preproc.classify.methods import statistics
from preproc.classify.table import Samples
from preproc.classify.unet import Blended, UNet
from preproc.raster.provenance import embeddings_fingerprint
from preproc.run.config import Config
from preproc.run.container import engine_python
from preproc.run.progress import say
from preproc.run.stage import Unit

FINAL = "final"
"""The network that is trained on all samples."""
PROCESSES = "SMALTI_SEGMENT_PROCESSES"
"""Variable with the number of accelerators that one network is trained on together; slurm/segment.sbatch sets it."""


def recipe_of(config: Config) -> SegmentRecipe:
    """What [segment] asks for."""
    return SegmentRecipe(**config.segment.model_dump(), seed=config.classify.seed)


@dataclass(frozen=True)
class Heads:
    """The networks of one classifier: one for each part that is tested, and the one that maps."""

    run: Run
    config: Config
    samples: Samples
    """(N) that are trained on."""
    codes_k: NDArray[Any]
    divisions: Mapping[str, Folds]
    """Who is tested when: "fold", and "year" and "region" where there are several."""
    inputs: Inputs
    """Of the classifier."""

    @property
    def key(self) -> str:
        """Fingerprint of the job."""
        return sha256_json(dict(self.inputs))

    @property
    def folder(self) -> Path:
        """Beside the studies: it is in nobody's way, and goes when the classifier is complete."""
        return self.run.logs / "study" / f"segment-{self.key[:12]}"

    @cached_property
    def masks(self) -> dict[str, NDArray[np.bool_]]:
        """Network -> (N,) what it is trained on."""
        parts = {
            f"{by}-{number + 1}": folds.fold_n != number
            for by, folds in self.divisions.items()
            for number in range(folds.count)
        }
        return {**parts, FINAL: np.ones(len(self.samples), dtype=bool)}

    def units(self) -> list[Unit]:
        """One a network."""
        return [
            Unit(
                f"network {name}",
                network_files(self.folder, name)[0],
                SegmentNetwork.kind,
                {"job": self.key, "network": name},
            )
            for name in self.masks
        ]

    def train(self, units: Sequence[Unit]) -> None:
        """Train those of the networks that are not there.

        Raises:
            SmaltiError: if the embeddings are no longer those of the samples, if there is nothing to run the engine
                with, or if it failed; its reason stands above.
        """
        self._refuse_other_embeddings()
        missing = [unit for unit in units if not unit.state().complete]
        if not missing:
            return
        self._write()
        names = [unit.name.removeprefix("network ") for unit in missing]
        say(f"train: {len(names)} networks of {recipe_of(self.config).steps} steps")
        codes = self._run(names)
        for code in (EXIT_BAD_INPUT, EXIT_TRY_AGAIN):
            if code in codes:
                raise SmaltiError(f"{self.folder}: the engine stopped; its reason stands above", exit_code=code)
        failed = [unit.name for unit in missing if not unit.state().complete]
        if failed or any(code != EXIT_OK for code in codes):
            what = f"did not train {', '.join(failed)}" if failed else f"ended with codes {codes}"
            raise SmaltiError(f"{self.folder}: the engine {what}; its reason stands above")

    def _refuse_other_embeddings(self) -> None:
        """Chips are cut from the embeddings that are there, and standardised by those of the samples."""
        for run in map(Run, self._roots):
            sampled = SamplesManifest.read(run).inputs.get("embeddings")
            if sampled != embeddings_fingerprint(run, gaps=True):
                raise SmaltiError(
                    f"{run.samples}: its samples are of other embeddings than those that are there now, and a "
                    f"segmentation head is trained on both: run `smalti sample {run.quoted}` again"
                )

    def _run(self, names: Sequence[str]) -> list[int]:
        together = int(os.environ.get(PROCESSES) or 1)
        start = ["-m", "infer.segment"]
        side = max(1, min(len(names), len(os.sched_getaffinity(0)) // self.config.segment.threads))
        if together > 1:
            start = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(together), *start]
            side = 1
        binds = [str(root) for root in self._roots]
        shares = [",".join(names[number::side]) for number in range(side)]
        commands = [
            engine_python(self.run, self.config, [*start, str(self.folder.absolute()), "--networks", share], binds)
            for share in shares
        ]
        with ExitStack() as stack:
            made = [subprocess.Popen(command) for command in commands]
            for process in made:
                stack.callback(_end, process)
            return [process.wait() for process in made]

    @property
    def _roots(self) -> list[Path]:
        """The folder of each of the samples' sources."""
        own = [] if self.config.labels is None else [self.run.root]
        return [root.absolute() for root in (*own, *self.config.train.runs)]

    def _write(self) -> None:
        samples = self.samples
        scenes, scene_n, row_n, col_n = self._places(samples)
        seen = [statistics(samples.values_nc[mask]) for mask in self.masks.values()]
        buffer = io.BytesIO()
        np.savez(
            buffer,
            scene_n=scene_n,
            row_n=row_n,
            col_n=col_n,
            class_n=np.searchsorted(self.codes_k, samples.code_n),
            group_n=np.unique(samples.group_n, return_inverse=True)[1],
            train_mn=np.stack(list(self.masks.values())),
            mean_mc=np.stack([mean_c for mean_c, _ in seen]),
            scale_mc=np.stack([scale_c for _, scale_c in seen]),
        )
        manifest, labels = job_files(self.folder)
        job = SegmentJob(
            codes=tuple(int(code) for code in self.codes_k),
            dim=samples.values_nc.shape[1],
            networks=tuple(self.masks),
            scenes=tuple(SegmentScene(str(self._roots[source]), zone) for source, zone in scenes),
            recipe=recipe_of(self.config),
        )
        content = buffer.getvalue()
        if not labels.exists() or labels.read_bytes() != content:  # another process may be reading it
            write_bytes(labels, content)
        job.write(manifest, inputs={"job": self.key}, files=[labels])

    def _places(
        self, samples: Samples
    ) -> tuple[list[tuple[int, int]], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Scenes (source, zone), and each sample's scene, row and column."""
        row_n, col_n = lattice(samples.epsg_n, samples.x_n, samples.y_n)
        scenes, scene_n = np.unique(
            np.column_stack([samples.run_n.astype(np.int64), samples.epsg_n.astype(np.int64) % 100]),
            axis=0,
            return_inverse=True,
        )
        return [(int(source), int(zone)) for source, zone in scenes.tolist()], scene_n.ravel(), row_n, col_n

    def network(self, name: str) -> UNet:
        """A trained network."""
        return UNet.load(network_files(self.folder, name)[1])

    def out_of_fold(self, by: str, workers: int) -> NDArray[np.float32]:
        """(N, K) what networks say of the samples that they have not seen, windows blended as on the map."""
        result = np.zeros((len(self.samples), len(self.codes_k)), dtype=np.float32)
        folds = self.divisions[by]
        for number in range(folds.count):
            test = folds.fold_n == number
            result[test] = self.say(f"{by}-{number + 1}", self.samples.take(test), workers)
        return result

    def say(self, name: str, samples: Samples, workers: int) -> NDArray[np.float32]:
        """(N, K) what a network says of samples."""
        result = np.zeros((len(samples), len(self.codes_k)), dtype=np.float32)
        if not len(samples):
            return result
        head = self.network(name)
        scenes, scene_n, row_n, col_n = self._places(samples)
        for number, (source, zone) in enumerate(scenes):
            here = scene_n == number
            result[here] = Blended(head, self._ground[source], zone).pixels(row_n[here], col_n[here], workers)
        return result

    @cached_property
    def _ground(self) -> list[Ground]:
        runs = [Run(root) for root in self._roots]
        return [Ground(run, Plan.read(run).tiles, checksums=False) for run in runs]


def _end(process: subprocess.Popen[bytes]) -> None:
    """Tell a process that is still there to stop; it saves its state."""
    if process.poll() is None:
        process.terminate()
        process.wait()
