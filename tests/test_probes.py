"""Probes beside the fine-tuned Dice: what is read, how it correlates, and what is not claimed."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import pearsonr, spearmanr
from synthetic_checkpoints import pretrained
from test_probe import write_dataset

from nnssl import checkpoint
from nnssl.bench import probes
from nnssl.bench.probes import Entry, ProbeRow
from nnssl.train import few_shot

pytestmark = pytest.mark.usefixtures("one_thread")


def row(name: str, dice: float | None, linear: float, decoder: float) -> ProbeRow:
    return ProbeRow(Entry(name, dice), {"probe_dice": linear, "probe_decoder": decoder}, 1.25)


def test_correlations_are_scipys_and_lie_in_their_interval():
    rng = np.random.default_rng(1)
    x = rng.normal(size=12)
    y = x + rng.normal(size=12)
    for ranked, theirs in ((False, pearsonr), (True, spearmanr)):
        value, low, high = probes.correlation(x, y, ranked)
        assert value == pytest.approx(theirs(x, y)[0])
        assert -1 <= low < value < high <= 1
    assert all(np.isnan(probes.correlation([1.0] * 4, [1.0, 2.0, 3.0, 4.0], ranked=False)))


@pytest.mark.parametrize(("count", "shown"), [(2, False), (5, False), (10, True)])
def test_too_few_encoders_show_nothing(count, shown):
    rows = [row(f"{i}.pth", 0.6 + 0.01 * i, 0.3 + 0.001 * i, 0.5 - 0.01 * i) for i in range(count)]
    text = probes.correlation_report([*rows, row("unknown.pth", None, 0.4, 0.5)])
    assert "| unknown.pth | not known | 0.400 | 0.500 | 1.2 |" in text
    assert (
        f"of {count} encoders is given: a correlation is not shown by fewer" in text
    ) is not shown
    if count > 2:
        assert "| linear | 1.00 [1.00, 1.00] | 1.00 [1.00, 1.00] |" in text
        assert "| decoder | -1.00 [-1.00, -1.00] |" in text
    else:
        assert "Pearson" not in text


def test_encoders_come_from_the_line_or_a_table(tmp_path):
    assert Entry.parse("a=b/c.pth=0.5") == Entry("a=b/c.pth", 0.5)
    assert Entry.parse("c.pth") == Entry("c.pth")
    table = tmp_path / "encoders.csv"
    table.write_text("checkpoint,dice\na.pth,0.61\nb.pth,\n")
    assert probes.read_csv(table) == [Entry("a.pth", 0.61), Entry("b.pth")]
    table.write_text("file,score\na.pth,0.61\n")
    with pytest.raises(ValueError, match="needs columns named checkpoint and dice"):
        probes.read_csv(table)


@pytest.mark.parametrize("text", ["a.pth=67", "a.pth=much", "a.pth=nan", "=0.5"])
def test_a_dice_is_from_0_to_1(text):
    with pytest.raises(ValueError, match="write CHECKPOINT=DICE with a Dice from 0 to 1"):
        Entry.parse(text)


def test_both_probes_of_a_checkpoint_and_of_a_random_encoder(
    tmp_path, nnunet_env, capsys, monkeypatch
):
    monkeypatch.setattr(few_shot, "STEPS", 2)
    write_dataset(nnunet_env["nnUNet_raw"] / "Dataset007_Made")
    path, kept = pretrained(tmp_path), tmp_path / "kept"
    line = ["-d", "7", "--cases", "4", "-o", str(kept)]
    probes.main([*line, f"{path}=0.7", "random=0.5"])
    printed = capsys.readouterr().out.splitlines()
    rows = [text for text in printed if text.startswith(("| random", f"| {path}"))]
    assert len(rows) == 2
    assert all(0 <= float(cell) <= 1 for text in rows for cell in text.split("|")[3:5])
    assert len(list(kept.iterdir())) == 1, "one plan, one set of cases"
    with pytest.raises(SystemExit):
        probes.main([*line, "random=0.5"])
    assert "name one checkpoint at least" in capsys.readouterr().err


def test_a_checkpoint_without_a_spacing_is_told_before_the_first_probe(
    tmp_path, nnunet_env, capsys, monkeypatch
):
    monkeypatch.setattr(probes, "_evaluated", lambda *_: pytest.fail("the first one was probed"))
    write_dataset(nnunet_env["nnUNet_raw"] / "Dataset007_Made")
    path, converted = pretrained(tmp_path), tmp_path / "converted.pth"
    content = checkpoint.read(path)
    content["header"]["plan"]["spacing"] = None
    checkpoint.write(converted, content)
    with pytest.raises(SystemExit):
        probes.main(["-d", "7", "-o", str(tmp_path / "kept"), f"{path}=0.7", f"{converted}=0.6"])
    told = capsys.readouterr().err
    assert f"{converted} does not say at which spacing" in told
    assert "nnssl_convert WEIGHTS -o FILE --spacing Z Y X" in told
    assert not (tmp_path / "kept").exists()
