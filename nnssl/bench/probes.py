"""Do the probes predict the Dice after fine-tuning? Both probes of several encoders against it.

    python -m nnssl.bench.probes -d 501 smit.pth=0.673 parcels.pth=0.681 random=0.634 unknown.pth
    python -m nnssl.bench.probes -d 501 --csv encoders.csv          # columns checkpoint, dice

Each checkpoint of nnssl_pretrain or nnssl_convert comes with the Dice that a fine-tuning from it
had; `random` is an untrained encoder of the size of the first one. The labelled cases are brought
to each checkpoint's own spacing and HU policy. Printed are the probes' values, their time, and the
correlations with the fine-tuned Dice (Pearson, Spearman), with 95 % intervals of a bootstrap over
encoders.
"""

from __future__ import annotations

import argparse
import csv
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from scipy.stats import rankdata

from nnssl import checkpoint
from nnssl.bench import markdown
from nnssl.bench.command_line import parser_of
from nnssl.checkpoint import Checkpoint
from nnssl.data.labelled import find_labelled, prepare_labelled
from nnssl.data.plan import Plan
from nnssl.encoder.swin import Swin
from nnssl.files import fingerprint
from nnssl.hu import HUPolicy
from nnssl.train.places import raw_dataset
from nnssl.train.probe import Probe

RANDOM = "random"
KINDS = {"linear": "probe_dice", "decoder": "probe_decoder"}
COLUMNS = ("encoder", "fine-tuned Dice", "linear probe", "decoder probe", "CPU seconds")
ENOUGH = 10  # encoders, for a correlation to count as shown
FEWEST = 3  # encoders, for any
DRAWS = 10_000
TINY = 1e-12


@dataclass(frozen=True)
class Entry:
    """A checkpoint, or RANDOM, and the fine-tuned Dice where it is known."""

    checkpoint: str
    dice: float | None = None

    @classmethod
    def parse(cls, text: str) -> Entry:
        """`PATH=DICE`, or `PATH` alone. Raises ValueError for a Dice outside of 0 to 1."""
        path, separator, dice = text.rpartition("=")
        return cls.of(path, dice) if separator else cls(text)

    @classmethod
    def of(cls, path: str, dice: str) -> Entry:
        if not dice:
            return cls(path)
        value = _float_or_nan(dice)
        if not path or not 0 <= value <= 1:
            raise ValueError(f"write CHECKPOINT=DICE with a Dice from 0 to 1, got {path}={dice}")
        return cls(path, value)


def _float_or_nan(text: str) -> float:
    """NaN of what is none."""
    try:
        return float(text)
    except ValueError:
        return math.nan


@dataclass(frozen=True)
class ProbeRow:
    """What the probes found of one encoder, and in how many CPU seconds."""

    entry: Entry
    values: dict[str, float]
    seconds: float


def read_csv(path: Path) -> list[Entry]:
    """Raises ValueError where there are no columns `checkpoint` and `dice`."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if not rows or not {"checkpoint", "dice"} <= rows[0].keys():
        raise ValueError(f"{path} needs columns named checkpoint and dice, and a row per encoder")
    return [Entry.of(row["checkpoint"], row["dice"]) for row in rows]


def correlation(x: Sequence[float], y: Sequence[float], ranked: bool) -> tuple[float, float, float]:
    """Pearson's, or of the ranks Spearman's, with its 95 % interval over draws of the pairs.

    NaN where either does not vary; draws of that kind do not count.
    """
    pairs = np.array([x, y], dtype=float)
    drawn = np.random.default_rng(0).integers(len(x), size=(DRAWS, len(x)))
    every = _correlations(pairs[0, drawn], pairs[1, drawn], ranked)
    return float(_correlations(pairs[:1], pairs[1:], ranked)[0]), *_interval(every)


def _interval(values: np.ndarray) -> tuple[float, float]:
    """That of 95 % of the finite ones."""
    finite = values[np.isfinite(values)]
    low, high = np.percentile(finite, [2.5, 97.5]) if len(finite) else (math.nan, math.nan)
    return float(low), float(high)


def _correlations(x: np.ndarray, y: np.ndarray, ranked: bool) -> np.ndarray:
    """Row by row."""
    if ranked:
        x, y = rankdata(x, axis=1), rankdata(y, axis=1)
    x, y = (values - values.mean(axis=1, keepdims=True) for values in (x, y))
    scale = np.sqrt((x * x).sum(axis=1) * (y * y).sum(axis=1))
    scale[scale < TINY] = math.nan
    return (x * y).sum(axis=1) / scale


def correlation_report(rows: Sequence[ProbeRow]) -> str:
    """Two tables, and a sentence where they show nothing yet."""
    known = [row for row in rows if row.entry.dice is not None]
    return "\n\n".join(
        [markdown.pipe_table(COLUMNS, map(_probe_cells, rows)), *_correlation_parts(known)]
    )


def _correlation_parts(known: Sequence[ProbeRow]) -> Iterator[str]:
    if len(known) >= FEWEST:
        columns = ("probe", "Pearson [95 %]", "Spearman [95 %]")
        yield markdown.pipe_table(columns, _correlation_rows(known))
    if len(known) < ENOUGH:
        given = f"The fine-tuned Dice of {len(known)} encoders is given"
        yield f"{given}: a correlation is not shown by fewer than {ENOUGH}."


def _correlation_rows(known: Sequence[ProbeRow]) -> Iterator[tuple[str, ...]]:
    """Per probe: its correlations with the fine-tuned Dice, which all of `known` have."""
    dice = [row.entry.dice for row in known if row.entry.dice is not None]
    for name, key in KINDS.items():
        values = [row.values[key] for row in known]
        both = (correlation(values, dice, ranked) for ranked in (False, True))
        yield name, *("{:.2f} [{:.2f}, {:.2f}]".format(*found) for found in both)


def _probe_cells(row: ProbeRow) -> list[str]:
    dice = "not known" if row.entry.dice is None else f"{row.entry.dice:.3f}"
    values = [f"{row.values[key]:.3f}" for key in KINDS.values()]
    return [row.entry.checkpoint, dice, *values, f"{row.seconds:.1f}"]


def probed(
    entries: Sequence[Entry],
    cases: Cases,
    crop: tuple[int, ...] | None,
    log: Callable[[str], None],
) -> list[ProbeRow]:
    """Both probes of each encoder, on the CPU; each is logged when it is done.

    crop: in voxels; None: that of the first one's pretraining.
    Raises ValueError where there is no checkpoint, or a file is none or has no spacing.
    """
    loaded = {e: checkpoint.load(e.checkpoint) for e in entries if e.checkpoint != RANDOM}
    if not loaded:
        raise ValueError("name one checkpoint at least: it says of which size `random` is")
    _require_spacings(loaded.values())
    first = next(iter(loaded.values()))
    crop = crop or tuple(first.header["crop"])
    rows = []
    for entry in entries:
        source = loaded.get(entry)
        probe = cases.probe((source or first).header["plan"], crop)
        rows.append(_evaluated(entry, probe, _probed_encoder(first, source)))
        log(f"{len(rows)} of {len(entries)}: {markdown.row(_probe_cells(rows[-1]))}")
    return rows


def _require_spacings(loaded: Iterable[Checkpoint]) -> None:
    """Before the first probe, which takes minutes."""
    for each in loaded:
        if each.spacing is None:
            raise ValueError(
                f"{each.path} does not say at which spacing it was pretrained, and cases cannot be "
                "brought to it. Convert its weights again with the spacing in mm: nnssl_convert "
                "WEIGHTS -o FILE --spacing Z Y X"
            )


def _evaluated(entry: Entry, probe: Probe, encoder: Swin) -> ProbeRow:
    began = time.process_time()
    values = probe.evaluate(encoder, torch.device("cpu"))
    return ProbeRow(entry, values, time.process_time() - began)


def _probed_encoder(first: Checkpoint, source: Checkpoint | None) -> Swin:
    """That of `source`; None: a random one of the size of `first`."""
    torch.manual_seed(0)
    config = (source or first).encoder_config
    encoder = Swin(replace(config, drop_path=0.0)).eval()
    if source is not None:
        checkpoint.transfer(source, encoder)
    return encoder


@dataclass(frozen=True)
class Cases:
    """The first so many labelled cases of a raw dataset, kept in `folder` for the next call."""

    dataset: str
    count: int
    folder: Path

    def probe(self, plan: dict, crop: tuple[int, ...]) -> Probe:
        """The probe, on the cases as a pretraining with this plan stores them."""
        grid = fingerprint([plan["spacing"], plan.get("hu")])
        kept = self.folder / f"{self.dataset}_{self.count}_{grid}"
        cases = find_labelled(raw_dataset(self.dataset), self.count)
        prepare_labelled(cases, kept, _probe_plan(plan, crop), 0)
        return Probe(kept, crop, every=1)


def _probe_plan(stored: dict, crop: tuple[int, ...]) -> Plan:
    """stored: the plan of a checkpoint."""
    policy = HUPolicy.from_dict(stored["hu"]) if stored.get("hu") else None
    box = crop if len(crop) == 3 else (16, *crop)
    return Plan("probes", tuple(stored["spacing"]), policy, box, ())


def parser() -> argparse.ArgumentParser:
    parser = parser_of(__doc__)
    parser.add_argument("encoders", nargs="*", metavar="CHECKPOINT=DICE")
    parser.add_argument("--csv", type=Path, help="a file with columns checkpoint and dice")
    parser.add_argument(
        "-d", dest="dataset", required=True, help="nnU-Net raw dataset, with labels"
    )
    parser.add_argument("--cases", type=int, default=10, help="labelled cases (default: 10)")
    parser.add_argument("--crop", nargs="+", type=int, help="voxels (default: the pretraining's)")
    parser.add_argument(
        "-o", dest="folder", type=Path, default=Path("probes"), help="where cases are kept"
    )
    return parser


def main(argv: list[str] | None = None) -> None:
    own = parser()
    args = own.parse_args(argv)
    try:
        print(correlation_report(_probe_rows(args)))
    except (ValueError, FileNotFoundError) as error:
        own.error(str(error))


def _probe_rows(args: argparse.Namespace) -> list[ProbeRow]:
    cases = Cases(args.dataset, args.cases, args.folder)
    crop = tuple(args.crop) if args.crop else None
    entries = [*map(Entry.parse, args.encoders), *(read_csv(args.csv) if args.csv else [])]
    return probed(entries, cases, crop, lambda line: print(line, file=sys.stderr))


if __name__ == "__main__":
    main()
