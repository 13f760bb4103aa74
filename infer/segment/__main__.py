"""Train the networks of a segmentation head, as `smalti train` asks for them; what is complete is passed over.

`smalti train RUN` makes the job and starts this by itself; by hand, on the GPUs of a node:

python -m infer.segment JOB --networks fold-1,final
torchrun --nproc-per-node 4 -m infer.segment JOB --networks fold-1
"""

from __future__ import annotations

import argparse
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import torch

from infer.contract import EXIT_OK, EXIT_TRY_AGAIN, SmaltiError, output_state, safe_name
from infer.contract.segment import SegmentJob, SegmentNetwork, job_files, network_files
from infer.pretrain.processes import Execution, choose, processes
from infer.progress import on_stop, say
from infer.segment.loop import Training

_REMEDY = "run `smalti train` again"


def build_parser() -> argparse.ArgumentParser:
    """The arguments."""
    first, _, examples = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="python -m infer.segment",
        description=first,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "job", type=Path, metavar="JOB", help="folder with job.json and labels.npz: RUN/logs/study/segment-..."
    )
    parser.add_argument("--networks", metavar="A,B", help="names in job.json; default: all of the job")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda (CUDA or ROCm)")
    parser.add_argument("--save-every", type=int, default=200, help="steps between states (default 200)")
    return parser


def read_job(folder: Path) -> SegmentJob:
    """The job in a folder.

    Raises:
        SmaltiError: if it is missing or damaged.
    """
    path = job_files(folder)[0]
    job = SegmentJob.read_at(path, _REMEDY)
    for name in job.networks:
        safe_name(name, f"{path}: networks", _REMEDY)
    if job.recipe.width % 8 or job.recipe.chip % 4 or job.recipe.steps < 1 or job.recipe.batch < 1:
        raise SmaltiError(f"{path}: its recipe is not one of smalti's: {_REMEDY}")
    return job


def train(arguments: argparse.Namespace) -> int:
    """Train what is missing."""
    if arguments.save_every < 1:
        raise SmaltiError("--save-every must be at least 1")
    folder = arguments.job
    job = read_job(folder)
    names = job.networks if arguments.networks is None else tuple(arguments.networks.split(","))
    unknown = [name for name in names if name not in job.networks]
    if unknown:
        raise SmaltiError(f"--networks {unknown[0]}: the job has {', '.join(job.networks)}")
    device = choose(arguments.device)
    torch.set_num_threads(job.recipe.threads)
    torch.use_deterministic_algorithms(device.type == "cpu")
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    stop = threading.Event()  # once set, the step is finished and the state saved
    with processes(device) as place, on_stop(lambda _number: stop.set()):
        for name in names:
            inputs = {"job": job.inputs["job"], "network": name}
            if output_state(network_files(folder, name)[0], SegmentNetwork.kind, inputs).complete:
                continue
            if not Training(folder, job, name, Execution(device, place, arguments.save_every)).run(stop):
                if place.rank == 0:
                    say(f"segment: stopped in {name}: the same command goes on from there")
                return EXIT_TRY_AGAIN
    return EXIT_OK


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        The exit code (see `infer.contract.errors`).
    """
    arguments = build_parser().parse_args(argv)
    try:
        return train(arguments)
    except SmaltiError as error:
        say(f"segment: {error}")
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
