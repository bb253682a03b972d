"""What the pages on clusters and containers let people copy: the script runs, its flags exist."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from nnssl import parsers

REPOSITORY = Path(__file__).resolve().parents[1]
DOCUMENTATION = REPOSITORY / "documentation"
SCRIPT = DOCUMENTATION / "slurm" / "pretrain.sbatch"
DOCKERFILE = DOCUMENTATION / "container" / "Dockerfile"
# of sbatch(1); an unknown one would keep the job from being handed in
SBATCH = {
    "job-name",
    "nodes",
    "ntasks-per-node",
    "gpus-per-node",
    "cpus-per-task",
    "mem",
    "time",
    "signal",
    "requeue",
    "open-mode",
    "output",
}
STUBS = {
    "srun": 'printf "%s\\n" "$@" > srun.txt; echo $$ > srun.pid; exec ${SRUN_DOES:-true}',
    "scontrol": 'echo "$@" >> scontrol.txt; [ "$1" = show ] && printf "node7\\nnode8\\n"; true',
    # SLURM would signal the tasks of the step
    "scancel": 'echo "$@" > scancel.txt; kill -TERM "$(cat srun.pid)"',
}


@pytest.fixture
def slurm(tmp_path, monkeypatch) -> Path:
    """A folder in which the script finds SLURM's commands; each leaves what it was told."""
    for name, does in STUBS.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{does}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    for name, value in {
        "SLURM_JOB_ID": "41007",
        "SLURM_JOB_NODELIST": "node[7-8]",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_GPUS_ON_NODE": "4",
    }.items():
        monkeypatch.setenv(name, value)
    return tmp_path


def run(folder: Path, *arguments: str) -> subprocess.Popen:
    return subprocess.Popen(["bash", str(SCRIPT), *arguments], cwd=folder)


def recorded(folder: Path, name: str) -> list[str]:
    return (folder / name).read_text().splitlines()


def test_every_option_of_sbatch_is_known_and_the_signal_is_for_the_shell():
    lines = re.findall(r"^#SBATCH --([\w-]+)(?:=(\S+))?$", SCRIPT.read_text(), flags=re.M)
    assert {name for name, _ in lines} == SBATCH
    # two machines, one torchrun each; the trap is of this shell, so the signal must be as well
    assert dict(lines)["ntasks-per-node"] == "1"
    assert re.fullmatch(r"B:USR1@\d+", dict(lines)["signal"])


def test_what_torchrun_and_our_command_are_given_is_what_they_take(slurm):
    from torch.distributed.run import parse_args

    assert run(slurm, "-m", "smit", "-i", "/data/ct_scans").wait(60) == 0
    kill, program, *arguments = recorded(slurm, "srun.txt")
    assert (kill, program) == ("--kill-on-bad-exit=1", "torchrun")
    parsed = parse_args(arguments)
    assert (parsed.nnodes, parsed.nproc_per_node) == ("2", "4")
    assert (parsed.rdzv_backend, parsed.rdzv_endpoint) == ("c10d", "node7:21007")
    assert (parsed.module, parsed.training_script) == (True, "nnssl")
    word, *ours = parsed.training_script_args
    requested = parsers.pretrain_parser().parse_args(ours)
    assert (word, requested.method, requested.resume) == ("pretrain", "smit", True)
    assert not (slurm / "scancel.txt").exists()


def test_before_the_time_limit_the_step_is_asked_to_save_and_the_job_is_queued_again(
    slurm, monkeypatch
):
    saves = slurm / "saves"
    saves.write_text("#!/bin/sh\ntrap 'sleep 0.3; echo saved > saved.txt; exit 1' TERM\n"
                     "echo > ready\nwhile :; do sleep 0.05; done\n")  # fmt: skip
    saves.chmod(0o755)
    monkeypatch.setenv("SRUN_DOES", str(saves))
    job = run(slurm)
    deadline = time.monotonic() + 60
    while not (slurm / "ready").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    job.send_signal(signal.SIGUSR1)
    assert job.wait(60) == 0
    assert recorded(slurm, "scancel.txt") == ["--signal=TERM 41007"]
    assert recorded(slurm, "saved.txt") == ["saved"]
    assert recorded(slurm, "scontrol.txt")[-1] == "requeue 41007"


def test_a_failed_step_is_not_queued_again(slurm, monkeypatch):
    monkeypatch.setenv("SRUN_DOES", "false")
    assert run(slurm).wait(60) == 1
    assert not any("requeue" in line for line in recorded(slurm, "scontrol.txt"))


def test_the_image_gets_all_that_an_installation_needs():
    """Every copied path exists and passes .dockerignore, and what setup.py reads is among them."""
    text = DOCKERFILE.read_text()
    copied = [line.split()[1:-1] for line in re.findall(r"^COPY .+$", text, flags=re.M)]
    names = {name for names in copied for name in names}
    assert all((REPOSITORY / name).exists() for name in names)
    kept = re.findall(r"^!(.+)$", (REPOSITORY / ".dockerignore").read_text(), flags=re.M)
    assert names == set(kept)
    assert {"setup.py", "README.md", "nnssl", "trainers", "plans", "documentation/LICENSE"} == names


def test_the_image_runs_as_a_user_and_its_extras_exist():
    text = DOCKERFILE.read_text()
    assert re.findall(r"^USER (.+)$", text, flags=re.M) == ["user"]
    (extras,) = re.findall(r"^ARG EXTRAS=(.+)$", text, flags=re.M)
    setup = (REPOSITORY / "setup.py").read_text()
    assert all(f'"{extra}": ' in setup for extra in extras.split(","))


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_the_image_for_gpus_has_the_c_compiler_that_triton_needs(device, tmp_path):
    (step,) = re.findall(r"^RUN (if .+?fi)$", DOCKERFILE.read_text(), flags=re.M | re.S)
    (tmp_path / "apt-get").write_text('#!/bin/sh\necho "$@"\n')
    (tmp_path / "apt-get").chmod(0o755)
    step = step.replace("\\\n", " ").replace("rm -rf /var/lib/apt/lists/*", "true")
    done = subprocess.run(
        [shutil.which("sh"), "-c", step],
        env={"DEVICE": device, "PATH": str(tmp_path)},
        capture_output=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stderr
    assert ("gcc libc6-dev" in done.stdout) == (device == "cuda")


@pytest.mark.parametrize("arguments", [("cpu", ""), ("tpu", "")], ids=["cpu", "tpu"])
def test_a_device_that_cannot_be_built_is_told_at_once(arguments, tmp_path):
    (case,) = re.findall(r"^RUN (case .+?esac)$", DOCKERFILE.read_text(), flags=re.M | re.S)
    device, index = arguments
    (tmp_path / "pip").write_text("#!/bin/sh\necho pip ran >&2\n")
    (tmp_path / "pip").chmod(0o755)
    done = subprocess.run(
        [shutil.which("sh"), "-c", case.replace("\\\n", " ")],
        env={"DEVICE": device, "TORCH_INDEX": index, "PATH": str(tmp_path)},
        capture_output=True,
        encoding="utf-8",
    )
    assert done.returncode == 1
    assert "DEVICE" in done.stderr
    assert "pip ran" not in done.stderr
