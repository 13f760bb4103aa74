"""A list of tiles through the engine: the next one is read and the last one written while one is computed."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import torch

from infer import sequence
from infer.contract import (
    EXIT_TRY_AGAIN,
    TILE_MANIFEST,
    FormatError,
    Inputs,
    SmaltiError,
    Tile,
    embedding_paths,
    is_released,
    read_back,
    read_tile,
    registered_model,
    release_tile,
    remove_stale_temporaries,
    staged_copy,
    take_back,
    write_embedding,
    writing,
)
from infer.contract.embedding import EmbeddingManifest, EmbeddingModel, EngineUsed, ModelPart
from infer.contract.monthly import months_go_by_date
from infer.contract.tile import TileSeason
from infer.device import is_out_of_memory
from infer.due import Report, Settings, TileTask, embedding_inputs, is_current, tile_fingerprint
from infer.engine import TileResult
from infer.families import AnyEngine, takes_months
from infer.prepare import LoadedTile
from infer.progress import Progress, say
from infer.tilework import InterruptedTileError, Watch
from infer.weights import Checkpoint, check_source

Opened = tuple[Tile | LoadedTile, Inputs]
"""A tile (on an accelerator: loaded), and what its embedding will depend on."""


class _ReadBackError(SmaltiError):
    """An embedding is not on the disk as it was written."""


class DeviceLostError(SmaltiError):
    """The accelerator stopped answering: this process cannot go on, another may."""

    exit_code = EXIT_TRY_AGAIN


class TileRunner:
    """Embeds a list of tiles and says what became of each."""

    def __init__(self, engine: AnyEngine, settings: Settings, stop: threading.Event) -> None:
        self._engine = engine
        self._settings = settings
        self._stop = stop
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="read", initializer=engine.device.activate)
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="write")

    def inputs(self, fingerprint: str, folder: Path) -> Inputs:
        """What an embedding of the tile in a folder depends on."""
        return embedding_inputs(
            fingerprint,
            self._settings,
            checkpoint=self._engine.checkpoint.sha256,
            precision=self._engine.device.precision,
            min_clear_s2=self._engine.min_clear_s2,
            by_date=takes_months(self._engine.checkpoint) and months_go_by_date(TileSeason.stated(folder)),
        )

    def run(self, tasks: Sequence[TileTask]) -> Report:
        """Do all tasks. One bad tile does not stop the others.

        Raises:
            DeviceLostError: if the accelerator vanished.
            SmaltiError: if outputs cannot be written.
        """
        report = Report()
        self._settings.out.mkdir(parents=True, exist_ok=True)
        remove_stale_temporaries(self._settings.out)
        progress = Progress("infer", len(tasks))
        try:
            self._run(tasks, report, progress)
        finally:
            self._reader.shutdown(cancel_futures=True)
            self._writer.shutdown()
            progress.close()
        return report

    def _run(self, tasks: Sequence[TileTask], report: Report, progress: Progress) -> None:
        writing: tuple[str, Future[None]] | None = None
        ahead = self._submit(tasks, 0)
        for index, task in enumerate(tasks):
            if self._stop.is_set():
                report.interrupted = True
                break
            current, ahead = ahead, self._submit(tasks, index + 1)
            try:
                opened = current.result()
                if opened is None:
                    report.skipped += 1
                    progress.advance(1.0)
                    continue
                content, inputs = opened
                began = time.perf_counter()
                result = self._compute(content, task.name, Watch(self._stop.is_set, progress.advance))
                self._time(task.name, result, began)
            except InterruptedTileError:
                report.interrupted = True
                break
            except SmaltiError as error:
                if isinstance(error, DeviceLostError):
                    raise
                report.failed[task.name] = str(error)
                progress.say(f"infer: {task.name} failed: {error}")
                continue
            _settle(writing, report)
            writing = task.name, self._writer.submit(self._write, task, content, inputs, result)
            report.done += 1
        _settle(writing, report)

    def _submit(self, tasks: Sequence[TileTask], index: int) -> Future[Opened | None]:
        if index >= len(tasks):
            nothing: Future[Opened | None] = Future()
            return nothing
        return self._reader.submit(self._open, tasks[index])

    def _open(self, task: TileTask) -> Opened | None:
        """Open, check and load a tile; None if its embedding is complete.

        On a CPU the checksums have brought it into the page cache, and loading it now would only take memory.
        """
        if task.need_manifest and not (task.folder / TILE_MANIFEST).is_file():
            raise FormatError(f"{task.folder}: this tile has not been fetched: run `smalti fetch`")
        inputs = self.inputs(tile_fingerprint(task.folder), task.folder)
        manifest = embedding_paths(self._settings.out, task.name)[2]
        gone = is_released(task.folder)
        if not self._settings.overwrite and self._complete(task, manifest, inputs, gone=gone):
            return None
        if gone:
            take_back(task.folder)
            raise FormatError(
                f"{task.folder}: its arrays were released, and are needed to embed it anew: "
                "run `smalti fetch` for this tile, and `smalti infer` again"
            )
        tile = self._read(task, inputs["tile"])
        if not self._settings.allow_source_mismatch:
            check_source(self._engine.checkpoint, task.name, tile.manifest.data_source)
        if self._engine.device.on_cpu:
            return tile, inputs
        with self._device_failures(task.name):
            return self._engine.load(tile), inputs

    def _complete(self, task: TileTask, manifest: Path, inputs: Inputs, *, gone: bool) -> bool:
        return is_current(manifest, inputs, self._settings, gone=gone) and self._let_go(task)

    def _let_go(self, task: TileTask) -> bool:
        """Release the arrays of a tile whose embedding is complete; False if its bytes are not what they should be."""
        if not self._settings.release:
            return True
        if not is_released(task.folder):
            try:
                read_back(self._settings.out, task.name)
            except FormatError as error:
                say(f"infer: {task.name} is made again: {error}")
                return False
        release_tile(task.folder)
        return True

    def _read(self, task: TileTask, fingerprint: str) -> Tile:
        """The tile's arrays, from the scratch disk if there is one and it can hold them."""
        if self._settings.scratch is not None:
            try:
                # Once its arrays are mapped the copy needs no name: a killed process leaves nothing of it.
                with staged_copy(task.folder, self._settings.scratch) as copy:
                    if tile_fingerprint(copy) != fingerprint:
                        raise FormatError(f"{task.folder}: changed while it was copied")
                    return read_tile(copy, need_manifest=task.need_manifest, planned=task.planned)
            except (SmaltiError, OSError) as error:
                say(f"infer: {task.name} is read in place, not by way of the scratch disk: {error}")
        return read_tile(task.folder, need_manifest=task.need_manifest, planned=task.planned)

    def _compute(self, opened: Tile | LoadedTile, name: str, watch: Watch) -> TileResult:
        with self._device_failures(name):
            return self._engine.embed(opened, output=self._settings.output, dim=self._settings.dim, watch=watch)

    def _time(self, name: str, result: TileResult, began: float) -> None:
        if self._settings.timings is None:
            return
        self._engine.device.synchronise()
        line = {
            "tile": name,
            "pixels": result.values.shape[0] * result.values.shape[1] - result.nodata_pixels,
            "seconds": time.perf_counter() - began,
            "device": self._engine.device.kind,
            "cores": self._engine.device.workers if self._engine.device.on_cpu else 0,
        }
        with writing(self._settings.timings), self._settings.timings.open("a") as stream:
            stream.write(f"{json.dumps(line)}\n")

    @contextmanager
    def _device_failures(self, name: str) -> Iterator[None]:
        """What an accelerator's driver reports means that this process has lost it."""
        try:
            yield
        except RuntimeError as error:
            if self._engine.device.on_cpu or is_out_of_memory(error):
                raise
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise DeviceLostError(
                f"{name}: the device {self._engine.device.kind} failed ({reason}): run the same command again, "
                "elsewhere if it persists"
            ) from error

    def _write(self, task: TileTask, opened: Tile | LoadedTile, inputs: Inputs, result: TileResult) -> None:
        tile = opened.tile if isinstance(opened, LoadedTile) else opened
        about = manifest_of(self._engine, tile, result)
        with self._device_failures(tile.name):
            values, scales = result.values_hwc, result.scales_hw
        counts = result.observations_hwm
        folder = self._settings.out
        write_embedding(folder, tile.name, values, scales, observations_hwm=counts, inputs=inputs, about=about)
        if self._settings.release:
            try:
                read_back(folder, tile.name)
            except FormatError as error:
                embedding_paths(folder, tile.name)[2].unlink(missing_ok=True)
                raise _ReadBackError(f"{error}; the tile's arrays are kept") from error
            release_tile(task.folder)


def _settle(writing: tuple[str, Future[None]] | None, report: Report) -> None:
    """Wait for what is being written; one that cannot be read back has failed, and the others go on."""
    if writing is None:
        return
    name, future = writing
    try:
        future.result()
    except _ReadBackError as error:
        report.done -= 1
        report.failed[name] = str(error)
        say(f"infer: {name} failed: {error}")


def _parts(checkpoint: Checkpoint) -> tuple[ModelPart, ...] | None:
    """Of several models side by side: whose numbers stand where."""
    numbers = [registered_model(part.name).usual_dim for part in checkpoint.parts]
    named = zip(checkpoint.parts, numbers, strict=True)
    return tuple(ModelPart(part.name, part.family, count, part.sha256) for part, count in named) or None


def manifest_of(engine: AnyEngine, tile: Tile, result: TileResult) -> EmbeddingManifest:
    """What an embedding's manifest says about how it was made."""
    checkpoint, device = engine.checkpoint, engine.device
    return EmbeddingManifest(
        model=EmbeddingModel(
            name=checkpoint.name,
            label=checkpoint.label,
            trained=checkpoint.trained,
            family=checkpoint.family,
            data_source=checkpoint.data_source,
            normalisation=checkpoint.normalisation_key,
            parts=_parts(checkpoint),
        ),
        dimensions=int(result.values.shape[2]),
        engine=EngineUsed(
            device=device.kind,
            precision=device.precision,
            torch=str(torch.__version__),
            compiled=engine.compiled,
            tokens_per_batch=engine.budget,
            out_of_memory_halvings=result.oom_halvings,
        ),
        observations=result.observations,
        nodata_pixels=result.nodata_pixels,
        min_clear_s2=engine.min_clear_s2 or None,
        draw=sequence.SEED_RULE if engine.draws else None,
        grid=tile.manifest.grid,
        data_source=tile.manifest.data_source,
        window=tile.manifest.window,
    )
