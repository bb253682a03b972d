"""The figures of the method pages: through the method's own views, found in their region, small
files.
"""

from __future__ import annotations

import micro
import pytest
import torch

from nnssl.bench import figures
from nnssl.methods import METHODS
from nnssl.train.run import FINAL, LATEST

pytestmark = pytest.mark.usefixtures("one_thread")


def subject(name: str, trained: bool = False) -> figures.Subject:
    return figures.Subject(
        micro.method(name), (32, 32, 32), (6.0, 6.0, 6.0), figures.SOFT_TISSUE, trained
    )


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_a_small_figure(name, tmp_path):
    figures.draw_views(subject(name), tmp_path / "figure.png")
    content = (tmp_path / "figure.png").read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    assert 1000 < len(content) <= figures.MOST_BYTES


@pytest.mark.parametrize("dims", [2, 3])
def test_a_view_is_found_in_its_region(dims):
    region = torch.randn(1, *(12,) * dims)
    corner = (3, 4, 5)[:dims]
    view = region[(0, *(slice(c, c + 6) for c in corner))]
    hidden = view.clone()
    hidden[0] = torch.nan
    assert figures.find_frame(region, [hidden, view]) == (corner, (6,) * dims)
    assert figures.find_frame(region, [hidden, view + 1, torch.randn((20,) * dims)]) is None


def test_the_same_depth_is_shown_where_the_frame_is_known():
    region = torch.arange(12.0).reshape(1, 12, 1, 1).expand(1, 12, 4, 4)
    view = region[0, 2:10]
    assert figures.slice_of(view, region, ((2, 0, 0), (8, 4, 4)))[0, 0] == 6
    assert figures.slice_of(view, region, None)[0, 0] == 2 + 4
    assert figures.slice_of(view[0], region, None).shape == (4, 4)


def test_predictions_are_shown_of_trained_weights_only(tmp_path, monkeypatch):
    titles = []
    monkeypatch.setattr(figures, "save", lambda *_: None)
    monkeypatch.setattr(
        figures,
        "picture",
        lambda rows, *_: titles.append([panel[0] for row in rows for panel in row.panels]),
    )
    for trained in (False, True):
        figures.draw_views(subject("simmim", trained), tmp_path / "figure.png")
    assert titles == [["crop", "seen"], ["crop", "seen", "predicted"]]


def test_a_checkpoint_gives_its_weights_crop_and_policy(tmp_path):
    run = micro.run(tmp_path, "simmim", settings={"mask_block": 8})
    run.step = 1
    run.save({})
    run.finish({})
    trained = figures.trained("simmim", tmp_path / LATEST)
    assert (trained.crop, trained.spacing, trained.hu.std, trained.trained) == (
        micro.CROP,
        (3.0, 2.0, 2.0),
        250.0,
        True,
    )
    assert trained.method.config == run.method.config
    for name, weight in run.method.state_dict().items():
        assert torch.equal(trained.method.state_dict()[name], weight), name
    with pytest.raises(ValueError, match=r"checkpoint_latest.pth of smit is needed.* is of simmim"):
        figures.trained("smit", tmp_path / LATEST)
    with pytest.raises(ValueError, match="the final one holds no heads"):
        figures.trained("simmim", tmp_path / FINAL)
