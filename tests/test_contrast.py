"""Contrastive losses and their queue against lightly, MONAI, naive loops and closed forms, in one
and two processes.
"""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.distributed as td
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import nn

from nnssl import dist
from nnssl.modules.contrast import EMPTY, Queue, info_nce, negative_cosine, nt_xent
from nnssl.modules.heads import Predictor, Projector
from nnssl.modules.running import RunningMean, decide, discard_all, update_all
from nnssl.modules.teacher import Teacher

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore")]

SIZES = [(2, 4), (5, 7), (8, 128), (16, 33)]  # batch, dimensions
TEMPERATURES = [0.05, 0.1, 0.5, 1.0]
WORLD, BATCH, DIM = 2, 4, 6


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def pair(batch: int, dim: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Two views that resemble each other, so that some answers are right."""
    first = randn(batch, dim, seed=seed)
    return first, first + randn(batch, dim, seed=seed + 1)


def filled(size: int, dim: int, scans: list[int]) -> Queue:
    """A queue that holds random keys of `scans`, the same in every process."""
    queue = Queue(size, dim)
    queue.keys[: len(scans)] = F.normalize(randn(len(scans), dim, seed=7), dim=1)
    queue.scans[: len(scans)] = torch.tensor(scans)
    queue.position.fill_(len(scans) % size)
    return queue


def naive(queries, keys, positive, scans_q, scans_k, temperature) -> tuple[float, float]:
    """Row by row: the positive, and the keys of other scans."""
    losses, right = [], []
    for i, query in enumerate(queries):
        cosines = [float(F.cosine_similarity(query, key, dim=0)) / temperature for key in keys]
        own = cosines[positive[i]]
        others = [
            c
            for j, c in enumerate(cosines)
            if scans_k[j] not in (scans_q[i], EMPTY) and j != positive[i]
        ]
        losses.append(-math.log(math.exp(own) / (math.exp(own) + sum(math.exp(c) for c in others))))
        right.append(bool(others) and own > max(others))
    return sum(losses) / len(losses), sum(right) / len(right)


# -- NT-Xent ---------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize(("batch", "dim"), SIZES)
def test_nt_xent_is_lightlys_and_monais(batch, dim, temperature):
    from lightly.loss import NTXentLoss
    from monai.losses import ContrastiveLoss

    first, second = (x.requires_grad_() for x in pair(batch, dim))
    got, _ = nt_xent(first, second, temperature)
    for oracle in (NTXentLoss(temperature), ContrastiveLoss(temperature)):
        wanted = oracle(first, second)
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)
        ours, theirs = (
            torch.autograd.grad(loss, (first, second), retain_graph=True) for loss in (got, wanted)
        )
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("batch", [2, 3, 8])
def test_equal_embeddings_give_the_logarithm_of_the_choices_and_no_right_answer(batch):
    same = torch.ones(batch, 5)
    loss, accuracy = nt_xent(same, same, 0.3)
    assert float(loss) == pytest.approx(math.log(2 * batch - 1), rel=1e-6)
    assert float(accuracy) == 0
    loss, accuracy = info_nce(same, same, 0.3)
    assert float(loss) == pytest.approx(math.log(batch), rel=1e-6)
    assert float(accuracy) == 0


def test_orthogonal_pairs_have_a_closed_form():
    basis, t = torch.eye(6), 0.5  # every other cosine is 0
    loss, accuracy = nt_xent(basis, 3 * basis, t)
    assert float(loss) == pytest.approx(math.log(1 + 10 * math.exp(-1 / t)), rel=1e-5)
    assert float(accuracy) == 1


def test_nt_xent_is_symmetric_and_needs_no_order():
    first, second = pair(6, 9)
    loss = nt_xent(first, second, 0.2)
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    torch.testing.assert_close(nt_xent(second, first, 0.2), loss)
    torch.testing.assert_close(nt_xent(first[order], second[order], 0.2), loss)


@pytest.mark.parametrize("temperature", [0.1, 0.7])
@pytest.mark.parametrize("scans", [[0, 1, 2, 3], [0, 0, 1, 2], [5, 3, 5, 5], [4, 4, 4, 4]])
@pytest.mark.parametrize("kept", [None, [9, 8, 3, 0, 4], [5, 5]])
def test_crops_of_the_same_scan_are_left_out(scans, kept, temperature):
    (first, second), queue = pair(4, 6), filled(8, 6, kept) if kept else None
    numbers = torch.tensor(scans)
    keys = torch.cat([first, second, *([queue.keys] if kept else [])])
    of_keys = [*scans, *scans, *(queue.scans.tolist() if kept else [])]
    wanted = naive(keys[:8], keys, [4, 5, 6, 7, 0, 1, 2, 3], [*scans, *scans], of_keys, temperature)
    got = [float(x) for x in nt_xent(first, second, temperature, numbers, queue)]
    assert got == pytest.approx(wanted, rel=1e-4, abs=1e-6)

    of_keys = [*scans, *(queue.scans.tolist() if kept else [])]
    wanted = naive(first, keys[4:], [0, 1, 2, 3], scans, of_keys, temperature)
    got = [float(x) for x in info_nce(first, second, temperature, numbers, queue)]
    assert got == pytest.approx(wanted, rel=1e-4, abs=1e-6)


def test_what_is_left_out_gets_no_gradient():
    first, second = (x.requires_grad_() for x in pair(3, 5))
    # nothing to choose from
    loss, accuracy = nt_xent(first, second, 0.1, torch.zeros(3, dtype=torch.long))
    loss.backward()
    assert float(loss) == float(accuracy) == 0
    assert float(first.grad.abs().sum() + second.grad.abs().sum()) == 0


# -- InfoNCE ---------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize(("batch", "dim"), SIZES)
def test_info_nce_is_cross_entropy_over_all_keys(batch, dim, temperature):
    query, key = pair(batch, dim)
    cosines = F.normalize(query, dim=1) @ F.normalize(key, dim=1).T
    loss, accuracy = info_nce(query, key, temperature)
    torch.testing.assert_close(loss, F.cross_entropy(cosines / temperature, torch.arange(batch)))
    torch.testing.assert_close(
        accuracy, (cosines.argmax(dim=1) == torch.arange(batch)).float().mean()
    )


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_one_query_against_a_queue_is_lightlys_memory_bank(temperature):
    """lightly (MoCo v2) takes its negatives from the bank alone; so does a batch of one."""
    from lightly.loss import NTXentLoss

    oracle, queue = NTXentLoss(temperature, memory_bank_size=(8, 6)), Queue(8, 6)
    queue.accumulate(oracle.memory_bank.bank[:, None], torch.arange(8))
    queue.update()
    for step in range(12):  # beyond one turn of the ring
        query, key = pair(1, 6, seed=10 * step)
        got, _ = info_nce(
            query.requires_grad_(), key, temperature, torch.tensor([100 + step]), queue
        )
        torch.testing.assert_close(got, oracle(query, key), rtol=1e-4, atol=1e-5)
        queue.accumulate(key[:, None], torch.tensor([100 + step]))
        queue.update()
        torch.testing.assert_close(queue.keys, oracle.memory_bank.bank)


def test_negative_cosine_is_lightlys():
    from lightly.loss import NegativeCosineSimilarity

    for batch, dim in SIZES:
        first, second = pair(batch, dim)
        torch.testing.assert_close(
            negative_cosine(first, second), NegativeCosineSimilarity()(first, second)
        )
    assert float(negative_cosine(first, 2 * first)) == pytest.approx(-1)


def test_everything_is_computed_in_fp32():
    first, second = pair(4, 6)
    queue = filled(4, 6, [7, 8])
    for loss in (
        lambda: nt_xent(first, second, 0.05, torch.arange(4), queue)[0],
        lambda: info_nce(first, second, 0.05, torch.arange(4), queue)[0],
        lambda: negative_cosine(first, second),
    ):
        plain = loss()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(loss(), plain)


# -- the queue -------------------------------------------------------------------------


def test_a_queue_is_a_ring_that_moves_once_a_step():
    queue, rows, scans = Queue(5, 2), torch.arange(1.0, 15).view(7, 1, 2), torch.arange(7)
    queue.accumulate(rows[:2], scans[:2])
    assert queue.scans.tolist() == [EMPTY] * 5
    queue.accumulate(rows[2:4], scans[2:4])  # another part of the same step
    update_all(queue)
    assert queue.scans.tolist() == [0, 1, 2, 3, EMPTY]
    torch.testing.assert_close(queue.keys[:4], F.normalize(rows[:4, 0], dim=1))
    queue.accumulate(rows[4:], scans[4:])
    discard_all(queue)
    update_all(queue)
    assert int(queue.position) == 4
    queue.accumulate(rows[4:], scans[4:])
    queue.update()
    assert queue.scans.tolist() == [5, 6, 2, 3, 4]
    queue.accumulate(rows, scans)  # more than fits: the last ones stay
    queue.update()
    assert sorted(queue.scans.tolist()) == [2, 3, 4, 5, 6]


def test_both_views_of_a_scan_are_kept_with_its_number():
    queue, keys = Queue(6, 3), randn(2, 2, 3)
    queue.accumulate(keys, torch.tensor([4, 9]))
    queue.update()
    assert queue.scans.tolist() == [4, 4, 9, 9, EMPTY, EMPTY]
    torch.testing.assert_close(queue.keys[:4], F.normalize(keys.flatten(0, 1), dim=1))


def test_a_bad_batch_does_not_stay_in_the_queue():
    queue = filled(4, 3, [1, 2])
    before = {name: value.clone() for name, value in queue.state_dict().items()}
    queue.accumulate(torch.tensor([[[1.0, math.nan, 0.0]]]), torch.tensor([3]))
    queue.update()
    assert all(torch.equal(value, before[name]) for name, value in queue.state_dict().items())


def test_an_empty_queue_changes_nothing_and_a_loaded_one_goes_on():
    first, second = pair(4, 6)
    scans = torch.arange(4)
    torch.testing.assert_close(
        nt_xent(first, second, 0.1, scans, Queue(8, 6)), nt_xent(first, second, 0.1, scans)
    )
    queue, other = filled(4, 6, [5, 6, 7]), Queue(4, 6)
    other.load_state_dict(queue.state_dict())
    for part in (queue, other):
        part.accumulate(randn(2, 1, 6), torch.tensor([8, 9]))
        part.update()
    assert other.scans.tolist() == queue.scans.tolist() == [9, 6, 7, 8]
    assert torch.equal(queue.keys, other.keys)


# -- heads -----------------------------------------------------------------------------


def test_heads_have_the_papers_layers():
    projector, predictor = Projector(12, 20, 5, layers=3), Predictor(5, 20)
    shapes = [tuple(p.shape) for p in projector.parameters() if p.ndim == 2]
    assert shapes == [(20, 12), (20, 20), (5, 20)]
    assert [tuple(p.shape) for p in predictor.parameters() if p.ndim == 2] == [(20, 5), (5, 20)]
    assert predictor(projector(randn(3, 12))).shape == (3, 5)


def test_no_row_of_a_projector_depends_on_the_others():
    """As it would with batch norm, through which a batch gives the answer away."""
    projector, rows = Projector(12, 20, 5, layers=3), randn(4, 12)
    torch.testing.assert_close(projector(rows)[:1], projector(rows[:1]))


# -- two processes ---------------------------------------------------------------------


def inputs() -> dict[str, torch.Tensor]:
    first, second = pair(WORLD * BATCH, DIM)
    return {"first": first, "second": second, "scans": torch.tensor([0, 1, 2, 2, 1, 5, 6, 7])}


def loss_of(kind: str, first, second, scans, queue) -> tuple[torch.Tensor, torch.Tensor]:
    if kind == "no scans":
        return nt_xent(first, second, 0.2)
    return (nt_xent if kind == "nt_xent" else info_nce)(first, second, 0.2, scans, queue)


def shared_step(kind: str, first, second, scans) -> dict[str, torch.Tensor]:
    """The loss of a linear map of the rows; its gradient averaged over processes, as
    DistributedDataParallel does.
    """
    queue, weight = filled(12, DIM, [3, 0, 6]), randn(DIM, DIM, seed=3).requires_grad_()
    loss, accuracy = loss_of(kind, first @ weight, second @ weight, scans, queue)
    loss.backward()
    for part in range(2):  # two parts of a step, as with accumulation
        rows = slice(part * len(first) // 2, (part + 1) * len(first) // 2)
        queue.accumulate(torch.stack([first[rows], second[rows]], dim=1), scans[rows])
    queue.update()
    found = {
        "loss": dist.all_reduce_mean(loss.detach()),
        "accuracy": dist.all_reduce_mean(accuracy),
        "gradient": dist.all_reduce_mean(weight.grad),
    }
    return {**found, "keys": queue.keys, "scans": queue.scans}


KINDS = ["nt_xent", "info_nce", "no scans"]


def as_rank(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    td.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=WORLD)
    # Part p of a step is samples [4p, 4p + 4), of which each process has two: as
    # nnssl.train.batches deals them.
    own = torch.tensor([0, 1, 4, 5]) + 2 * rank
    dealt = {name: tensor[own] for name, tensor in inputs().items()}
    torch.save({kind: shared_step(kind, **dealt) for kind in KINDS}, folder / f"{rank}.pth")
    td.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> list[dict]:
    folder = tmp_path_factory.mktemp("contrast")
    mp.spawn(as_rank, args=(folder,), nprocs=WORLD)
    return [torch.load(folder / f"{rank}.pth") for rank in range(WORLD)]


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_contrast_as_one_with_the_joint_batch(found, kind):
    one = shared_step(kind, **inputs())
    for rank in range(WORLD):
        for name, value in one.items():
            torch.testing.assert_close(
                found[rank][kind][name], value, rtol=1e-5, atol=1e-6, msg=f"{name} of {rank}"
            )


def test_gathering_costs_nothing_in_one_process():
    tensor = torch.ones(2, requires_grad=True)
    assert dist.all_gather_with_gradient(tensor) is tensor


def test_a_step_that_does_not_count_moves_no_running_state():
    """Whether it counts is a tensor: nobody may have to look at it."""
    parts = nn.ModuleList(
        [Queue(4, 3), RunningMean(3, 0.9, plain_start=True), Teacher(nn.Linear(3, 3))]
    )
    student = nn.Linear(3, 3)
    states = []
    for counts in (None, torch.tensor(False), torch.tensor(True)):
        parts[0].accumulate(torch.randn(1, 2, 3), torch.tensor([1]))
        parts[1].accumulate(torch.randn(5, 3))
        decide(parts, counts)
        update_all(parts)
        parts[2].update(student, 0.1)
        states.append({name: value.clone() for name, value in parts.state_dict().items()})
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not any(
        torch.equal(states[1][name], states[2][name]) for name in states[0] if "scans" not in name
    )
    own = states[1]["2.model.weight"]
    torch.testing.assert_close(states[2]["2.model.weight"], own.lerp(student.weight, 0.1))
