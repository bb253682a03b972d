"""Is the run learning, or has it collapsed? Numbers for the log, and advice when a problem
persists.

embedding_std   mean over dimensions of std over the last `RECENT` crops of z/|z|, times sqrt(d):
                near 1 when healthy, 0 when every crop looks the same (Chen 2021, SimSiam, section
                4.1). No more than these: embeddings of a network that moves differ for that reason
                too.
rankme          exp of the entropy of the singular values of the last `WINDOW` embeddings (Garrido
                2023).
entropy_<head>  mean entropy of the teacher's targets, as a fraction of log K: 1 = uniform collapse.
spread_<head>   entropy of the mean target, as a fraction of log K: 0 = one prototype for all.
used_<head>     how many prototypes are the first choice of some token or crop. These three
                are of the last part of a step (--accumulate).
accuracy        fraction of right answers, where the method asks a question that has one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from operator import gt, lt

import torch
from torch import Tensor

from nnssl import dist
from nnssl.methods import Method, MethodConfig

WINDOW, RECENT = 512, 64  # embeddings
# readings in a row before a collapse is called one: targets near uniform for 250 steps do recover
PATIENCE = 30

# Runs that learn were seen at 0.13 and above, runs that predict one value for everything at 0.03
# and below.
ALIKE = 0.05
TEMPERATURES = ("teacher_temperature_start", "teacher_temperature_end")

FOUND = {
    "embedding": "this run may have collapsed: all crops look alike to the encoder (embedding_std "
    "< 0.05)",
    "uniform": "this run may have collapsed: the teacher's targets carry no information (entropy "
    "near log K)",
    "single": "this run may have collapsed: the teacher names one prototype for everything",
    "solved": "the pretext task is nearly always solved (accuracy > 0.99), so more steps teach "
    "little: stop here and use checkpoint_latest.pth, or make the task harder",
}


def advice(alarm: str, config: MethodConfig) -> str:
    """What was found, by the name in FOUND, and settings of this method that may help: those that
    would change something.
    """
    tries = [words for words in _tries(alarm, config) if words]
    return f"{FOUND[alarm]}. Try {' or '.join(tries)}" if tries else FOUND[alarm]


def _tries(alarm: str, config: MethodConfig) -> list[str]:
    if alarm == "embedding":
        momentum = getattr(config, "teacher_momentum", 1.0)
        slower = round(1 - (1 - momentum) / 2, 6)
        teacher = _set("a slower teacher", gt, config, teacher_momentum=slower)
        return ["a larger batch (--batch-size)", _lower_rate(config), teacher]
    if alarm == "uniform":
        sharper = _set("a sharper teacher", lt, config, **dict.fromkeys(TEMPERATURES, 0.03))
        fewer = _set("fewer prototypes", lt, config, prototypes=1024)
        return [sharper, _lower_rate(config), fewer]
    if alarm == "single":
        faster = _set("a faster centre", lt, config, centre_momentum=0.8)
        return [faster, _set("a softer teacher", gt, config, **dict.fromkeys(TEMPERATURES, 0.06))]
    return []


def _lower_rate(config: MethodConfig) -> str:
    """Half of it, and of the bound that larger batches may have reached; the papers have none."""
    names = ("lr",) if config.lr_most >= 1 else ("lr", "lr_most")
    halves = {name: getattr(config, name) / 2 for name in names}
    return _set("a lower learning rate", lt, config, **halves)


def _set(
    words: str, better: Callable[[float, float], bool], config: MethodConfig, **values: float
) -> str:
    """`words (--set field=value ...)` with the fields that the method has and of which the value is
    `better` than the present one; "" without any.
    """
    known = {name: value for name, value in values.items() if hasattr(config, name)}
    changed = [f"{n}={v:g}" for n, v in known.items() if better(v, getattr(config, n))]
    return f"{words} (--set {' '.join(changed)})" if changed else ""


def _separates(method: Method) -> bool:
    """Whether a term of the loss, with a weight above 0, keeps the embeddings of crops apart."""
    return any(getattr(method.config, f"w_{name}", 1.0) > 0 for name in method.separating)


def embedding_std(embedding: Tensor) -> float:
    """[N d] -> near 1 for embeddings spread over the sphere and 0 for equal ones."""
    unit = torch.nn.functional.normalize(embedding.float(), dim=-1)
    return float(unit.std(dim=0, correction=0).mean() * math.sqrt(unit.shape[1]))


def rankme(embedding: Tensor) -> float:
    """[N d] -> effective rank in [1, min(N, d)] (Garrido 2023, eq. 1)."""
    values = torch.linalg.svdvals(embedding.float())
    fraction = values / values.sum().clamp(min=1e-12) + 1e-7
    return float(torch.exp(-(fraction * fraction.log()).sum()))


def entropies(probabilities: Tensor) -> tuple[float, float, int]:
    """[N K] -> mean entropy / log K, entropy of the mean / log K, prototypes in use. Rows of zeros,
    which fill up a list of fixed length, do not count; with no others all three are 0.
    """
    p = probabilities.float()
    p = p[p.sum(dim=-1) > 0]
    if not len(p):
        return 0.0, 0.0, 0
    scale = math.log(p.shape[-1])
    used = p.argmax(dim=-1).unique().numel()
    return float(_entropy(p).mean()) / scale, float(_entropy(p.mean(dim=0))) / scale, used


def _entropy(p: Tensor) -> Tensor:
    return -(p * p.clamp(min=1e-12).log()).sum(dim=-1)


def _of_targets(head: str, probabilities: Tensor) -> dict[str, float]:
    entropy, spread, used = entropies(probabilities)
    return {f"entropy_{head}": entropy, f"spread_{head}": spread, f"used_{head}": used}


def _finite_rows(embeddings: Tensor) -> Tensor:
    return embeddings[embeddings.isfinite().all(dim=1)]


def _wrong(row: dict[str, float], method: Method) -> dict[str, bool]:
    """Which of FOUND holds for one reading."""
    return {
        "embedding": _separates(method) and row.get("embedding_std", 1.0) < ALIKE,
        "uniform": any(value > 0.98 for value in _of_heads(row, "entropy_")),
        "single": any(value < 0.02 for value in _of_heads(row, "spread_")),
        "solved": row.get("accuracy", 0.0) > 0.99,
    }


def _of_heads(row: dict[str, float], monitor: str) -> list[float]:
    return [value for name, value in row.items() if name.startswith(monitor)]


class Monitors:
    """Keeps the last embeddings and how long each warning has lasted; its state is part of a
    resume.
    """

    def __init__(self) -> None:
        self._kept = torch.empty(0)
        self._recorded: list[Tensor] = []  # of the steps since, still on the device
        self.lasting = dict.fromkeys(FOUND, 0)

    def record(self, monitored: dict[str, Tensor]) -> None:
        """Every step: remember the embeddings of all processes, without waiting for them."""
        if "embedding" in monitored:
            self._recorded.append(dist.all_gather(monitored["embedding"].detach().float()))
            while sum(map(len, self._recorded[1:])) >= WINDOW:
                self._recorded.pop(0)

    @property
    def embeddings(self) -> Tensor:
        """[up to WINDOW d] the last ones, on the CPU; those of a batch that overflowed are left
        out.
        """
        if self._recorded:
            latest = _finite_rows(torch.cat(self._recorded).cpu())
            self._recorded.clear()
            kept = self._kept if self._kept.numel() else latest[:0]
            self._kept = torch.cat([kept, latest])[-WINDOW:]
        return self._kept

    def read(self, monitored: dict[str, Tensor]) -> dict[str, float]:
        """At logged steps: the numbers of this step, averaged over processes by the caller."""
        row, embeddings = {}, self.embeddings
        if embeddings.numel():
            row["embedding_std"] = embedding_std(embeddings[-RECENT:])
            row["rankme"] = rankme(embeddings)
        for name, value in monitored.items():
            if value.ndim == 0:
                row[name] = float(value)
            elif name.startswith("teacher_"):
                row |= _of_targets(name.removeprefix("teacher_"), value)
        return row

    def alarms(self, row: dict[str, float], method: Method) -> list[str]:
        """Advice for what has been wrong for exactly PATIENCE readings: each is given once, when
        it is certain.
        """
        wrong = _wrong(row, method)
        self.lasting = {name: self.lasting[name] + 1 if wrong[name] else 0 for name in FOUND}
        lasted = [name for name, count in self.lasting.items() if count == PATIENCE]
        return [advice(name, method.config) for name in lasted]

    def state_dict(self) -> dict:
        return {"embeddings": self.embeddings, "lasting": self.lasting}

    def load_state_dict(self, state: dict) -> None:
        self._kept, self.lasting = state["embeddings"], state["lasting"]
        self._recorded.clear()
