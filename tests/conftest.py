"""What every test finds ready: few threads, nnU-Net's folders set apart, phantoms, real scans."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

# Before torch and nnU-Net are imported, here and in every process that a test starts.
PROCESSES = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
THREADS = str(max(1, min(2, (os.cpu_count() or 1) // PROCESSES)))
for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(variable, THREADS)
# waiting in a busy loop starves the other processes of a test
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("nnUNet_n_proc_DA", "1")
os.environ.setdefault("nnUNet_def_n_proc", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import pytest  # noqa: E402

from nnssl import trainer_path  # noqa: E402

NNUNET_FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True, scope="session")
def _signals_are_heard() -> None:
    """A shell lets what it starts in the background ignore SIGINT, and nohup SIGHUP."""
    for number, handler in (
        (signal.SIGHUP, signal.SIG_DFL),
        (signal.SIGINT, signal.default_int_handler),
    ):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)


@pytest.fixture(autouse=True)
def _no_user_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the user's own nnU-Net folders, trainers or checkpoint."""
    for variable in (*NNUNET_FOLDERS, "nnUNet_extTrainer", "nnssl_checkpoint"):
        monkeypatch.delenv(variable, raising=False)


@pytest.fixture
def nnunet_env(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """nnU-Net's three variables, set to empty folders of this test; the value maps name to
    folder.
    """
    folders = {name: tmp_path / name for name in NNUNET_FOLDERS}
    for name, folder in folders.items():
        folder.mkdir()
        monkeypatch.setenv(name, str(folder))
    monkeypatch.setenv(trainer_path.VARIABLE, trainer_path.trainers_folder())
    return folders


@pytest.fixture(scope="session")
def phantom_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three small unlabelled phantoms (NIfTI, int16 HU). Shared by all tests: read, never write."""
    from nnssl import phantoms

    folder = tmp_path_factory.mktemp("phantoms")
    phantoms.write_folder(folder, seeds=range(3), shape=(24, 36, 40))
    return folder


@pytest.fixture
def one_thread() -> Iterator[None]:
    """For tensors so small that a second thread only waits, and for the same bits on every
    machine.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def shared_data() -> Path:
    """The folder of real scans ($NNSSL_TEST_DATA or ../shared/data); skips where absent."""
    folder = Path(os.environ.get("NNSSL_TEST_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(
            f"no real scans at {folder}: set NNSSL_TEST_DATA to the folder that holds ct_unlabelled"
        )
    return folder
