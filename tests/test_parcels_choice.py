"""SMIT decides by itself whether it learns from parcels: when, why, and what wins over it."""

from __future__ import annotations

from pathlib import Path

import pytest

from nnssl import checkpoint, phantoms
from nnssl.data import atlas, parcel_failures, parcel_maps
from nnssl.data.plan import Case, Plan
from nnssl.data.prepare import PrepareRequest, prepare
from nnssl.files import read_json
from nnssl.hu import HUPolicy
from nnssl.train import parcels_choice, pretrain
from nnssl.train.earlier_run import EarlierRun
from nnssl.train.log import Log
from nnssl.train.pretrain import Options
from nnssl.train.run import LATEST

SPACING = (5.0, 6.0, 6.0)
HU = HUPolicy(-1000.0, 1000.0, 40.0, 250.0)
SCANS = 3


def plan_of(scans: int, hu: HUPolicy | None = HU) -> Plan:
    cases = tuple(Case(f"c{i}", f"c{i}", "", (24, 36, 40), SPACING) for i in range(scans))
    return Plan("made", SPACING, hu, (16, 32, 32), cases)


def smit(*settings: str, **options) -> Options:
    return Options("smit", settings=settings, num_processes=0, **options)


@pytest.fixture
def makes(monkeypatch) -> list[tuple]:
    """The calls of `parcels.make`, which makes nothing here; every scan of a plan is there."""
    calls = []

    def make(folder, plan, classes, num_processes, print_fn, cases=None, least=0.0):
        calls.append((classes, least))
        return [case.id for case in plan.cases]

    monkeypatch.setattr(parcel_maps, "make", make)
    monkeypatch.setattr(
        parcel_maps, "preprocessed", lambda _, plan: [case.id for case in plan.cases]
    )
    monkeypatch.setattr(parcel_maps, "are_made", lambda *_: False)
    return calls


def choose(options: Options, plan: Plan, folder: Path = Path(), earlier: EarlierRun | None = None):
    return parcels_choice.choose(options, plan, folder, earlier or EarlierRun(), lambda _: None)


@pytest.mark.parametrize("scans", [10, 999])
def test_smit_of_some_scans_has_parcels(makes, scans):
    (choice,) = choose(smit("classes=32"), plan_of(scans))
    assert (choice.name, choice.value) == ("w_parcels", 1.0)
    assert f"{scans} of {scans} scans could be registered" in choice.reason
    assert makes == [(32, 0.8)]


@pytest.mark.parametrize(
    ("options", "plan", "reason"),
    [
        (smit(dims=2), plan_of(50), "trains on slices"),
        (smit(crop=(32, 32)), plan_of(50), "trains on slices"),
        (smit(), plan_of(50, hu=None), "computed from HU, which these scans do not have"),
        (smit("decoder=light"), plan_of(50), "decoder=light pretrains a decoder already"),
        (smit("export=teacher"), plan_of(50), "export=teacher is set"),
        (smit(), plan_of(9), "9 scans, too few for an atlas (at least 10)"),
        (smit(), plan_of(1000), "1000 scans; parcels are used below 1000"),
    ],
)
def test_smit_says_why_it_has_none(makes, options, plan, reason):
    (choice,) = choose(options, plan)
    assert (choice.name, choice.value) == ("w_parcels", 0.0)
    assert choice.reason.startswith("no parcels: ")
    assert reason in choice.reason
    assert makes == []


def test_parcels_that_are_there_are_used_however_many_scans(makes, monkeypatch):
    monkeypatch.setattr(parcel_maps, "are_made", lambda *_: True)
    assert choose(smit(), plan_of(1000))[0].value == 1.0


@pytest.mark.parametrize(
    ("method", "settings", "made"),
    [
        ("smit", ("w_parcels=0",), []),
        ("smit", ("w_parcels=1", "classes=5"), [(5, 0.0)]),
        ("smit", ("published=true",), []),
        ("smit", ("published=true", "w_parcels=1"), [(64, 0.0)]),
        ("parcels", (), [(64, 0.0)]),
        ("simmim", (), []),
    ],
)
def test_nothing_is_chosen_where_it_is_said(makes, method, settings, made):
    """Also for two scans: who asks for parcels gets them, and who asks for none has none."""
    assert choose(Options(method, settings=settings), plan_of(2)) == ()
    assert makes == made


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_a_run_that_goes_on_keeps_what_it_had(makes, weight):
    """Whatever would be chosen now; one of before the choice had no parcels."""
    earlier = EarlierRun(cases=["c0"], method_config={"w_parcels": weight, "classes": 7})
    assert choose(smit(), plan_of(50), earlier=earlier) == ()
    assert makes == ([(7, 0.0)] if weight else [])
    assert choose(smit(), plan_of(50), earlier=EarlierRun(method_config={"lr": 1e-3})) == ()


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("raw")
    phantoms.write_folder(folder, seeds=range(SCANS), shape=(24, 36, 40))
    return folder


@pytest.fixture
def few_are_enough(monkeypatch) -> None:
    monkeypatch.setattr(parcels_choice, "FEWEST", SCANS)


@pytest.fixture
def registered(monkeypatch) -> list[int]:
    """Which scans were registered, so to say: of three the second fails."""
    calls = []

    def register(*_):
        calls.append(len(calls))
        if len(calls) % SCANS == 2:
            raise atlas.RegistrationError("has no structure to register")
        return atlas.Affine(tuple(map(tuple, [[1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0]])), (0.0,) * 3)

    monkeypatch.setattr(atlas, "register", register)
    return calls


def test_scans_that_are_not_alike_have_no_parcels(raw, tmp_path, few_are_enough, registered):
    """Two of three: less than 80 %. It is found out once, and asking by hand still works."""
    plan = prepare(PrepareRequest("made", tmp_path, [raw], spacing=SPACING, num_processes=0))
    for _ in range(2):
        (choice,) = choose(smit("classes=6"), plan, tmp_path)
        assert choice.value == 0.0
        assert "2 of 3 scans could be registered to one another, 3 are needed" in choice.reason
        assert "has no structure to register" in choice.reason
        assert "\n" not in str(choice)
        assert len(registered) == SCANS
    assert not (tmp_path / parcel_maps.NOTE).exists()
    assert read_json(tmp_path / parcel_failures.FAILED)["cases"]
    assert choose(smit("w_parcels=1", "classes=6"), plan, tmp_path) == ()
    assert len(parcel_maps.cases_with_parcels(tmp_path, plan)) == 2
    # they are there now, but of too few scans
    assert choose(smit("classes=6"), plan, tmp_path)[0].value == 0.0


def test_who_asks_for_parcels_hears_why_there_are_none(raw, tmp_path, monkeypatch):
    def register(*_):
        raise atlas.RegistrationError("has no structure to register")

    monkeypatch.setattr(atlas, "register", register)
    plan = prepare(PrepareRequest("made", tmp_path, [raw], spacing=SPACING, num_processes=0))
    message = r"0 of 3 scans could be .*, 2 are needed .*has no structure.*: choose another method"
    with pytest.raises(ValueError, match=message):
        choose(smit("w_parcels=1"), plan, tmp_path)


def test_a_collection_that_may_only_be_read_has_the_parcels_that_are_there(
    raw, tmp_path, few_are_enough, registered, monkeypatch
):
    """SMIT registered all scans of it before it failed."""
    monkeypatch.setattr(parcels_choice, "REGISTERED", 0.5)
    plan = prepare(PrepareRequest("made", tmp_path, [raw], spacing=SPACING, num_processes=0))
    with monkeypatch.context() as patch:
        patch.setattr("nnssl.data.parcel_failures.os.access", lambda *_: False)
        (choice,) = choose(smit("classes=6"), plan, tmp_path)
        assert choice.value == 0.0
        assert "is read-only and holds no parcels of 6 classes" in choice.reason
        with pytest.raises(ValueError, match=r"is read-only.*copy the folder.*--set w_parcels=0"):
            choose(smit("w_parcels=1", "classes=6"), plan, tmp_path)
        with pytest.raises(ValueError, match=r"is read-only.*type the same command$"):
            choose(Options("parcels", settings=("classes=6",)), plan, tmp_path)
    assert registered == []
    assert choose(smit("classes=6"), plan, tmp_path)[0].value == 1.0
    monkeypatch.setattr("nnssl.data.parcel_failures.os.access", lambda *_: False)
    assert choose(smit("classes=6"), plan, tmp_path)[0].value == 1.0
    assert len(registered) == SCANS


@pytest.fixture
def pretrains(nnunet_env, raw, monkeypatch):
    """A function that pretrains SMIT on the phantoms; what it said."""
    monkeypatch.setattr(Log, "draw", lambda self: None)
    monkeypatch.setattr(pretrain, "keep_freed_memory", lambda: False)

    def run(*settings: str, **options) -> str:
        said = []
        small = ("prototypes=32", "head_hidden=16", "patch_tokens=8")
        chosen = {
            "sources": (raw,),
            "name": "made",
            "preset": "tiny",
            "crop": (16, 32, 32),
            "batch_size": 1,
            "steps": 1,
            "workers": 0,
            "device": "cpu",
            "num_processes": 0,
            "spacing": SPACING,
            "settings": (*small, *settings),
            **options,
        }
        pretrain.pretrain(Options("smit", **chosen), said.append)
        return "\n".join(said)

    return run


def test_a_run_says_what_it_chose_and_goes_on_with_it(
    pretrains, nnunet_env, few_are_enough, registered, monkeypatch
):
    monkeypatch.setattr(parcels_choice, "REGISTERED", 0.5)
    said = pretrains("classes=6")
    assert "parcels: 3 scans are being registered to one of them" in said
    assert "w_parcels=1.0: 2 of 3 scans could be registered" in said
    folder = nnunet_env["nnUNet_results"] / "nnssl" / "made" / "smit__tiny"
    header = checkpoint.read(folder / LATEST)["header"]
    assert header["method_config"]["w_parcels"] == 1.0
    assert header["parcels"].startswith("6 classes of 2 scans")
    assert header["decoder"]["name"] == "light"
    monkeypatch.setattr(parcels_choice, "FEWEST", 99)
    assert "continuing at step 1 of 2" in pretrains(resume=True, steps=2)
    with pytest.raises(ValueError, match=r"w_parcels: was 1.0, now 0.0"):
        pretrains("w_parcels=0", resume=True, steps=3)


def test_a_run_of_few_scans_says_that_it_has_none(pretrains, nnunet_env):
    said = pretrains()
    assert "w_parcels=0.0: no parcels: 3 scans, too few for an atlas (at least 10)" in said
    folder = nnunet_env["nnUNet_preprocessed"] / "nnssl" / "made"
    assert not (folder / parcel_maps.NOTE).exists()
