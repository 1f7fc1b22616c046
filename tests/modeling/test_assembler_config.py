"""Assemblers built from the config: all parts combine, mistakes are named."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from detectron2.config import get_cfg

from mpn_d2.config import add_mpn_config
from mpn_d2.modeling.assembly import build_pose_assembler
from mpn_d2.structures.outputs import Candidates
from mpn_d2.utils.safe_files import TRUST


@pytest.mark.parametrize(
    "evidence", ["prn", "prn_nonresidual", "ucr", "max", "identity", "learned"]
)
@pytest.mark.parametrize("matching", ["reference", "mutual_best", "hungarian", "argmax"])
def test_every_combination_is_built_from_the_config(evidence, matching):
    cfg = get_cfg()
    add_mpn_config(cfg)
    cfg.MODEL.ASSEMBLER.EVIDENCE = evidence
    cfg.MODEL.ASSEMBLER.MATCHING = matching
    cfg.MODEL.ASSEMBLER.SAMPLES = "images" if evidence == "learned" else "people"
    cfg.MODEL.PRN.NODES = 4
    model = build_pose_assembler(cfg).eval()
    assert model.num_keypoints == 17
    assert evidence == "learned" or model.evidence.size == (56, 36)
    points = torch.rand(40, 2, generator=torch.Generator().manual_seed(0)) * 90
    candidates = Candidates(points, torch.arange(40) % 17, torch.ones(40))
    boxes = torch.tensor([[0.0, 0, 60, 90], [30, 0, 90, 90]])
    poses, none = model.inference([candidates, candidates], [boxes, boxes[:0]])
    assert poses.keypoints.shape == (2, 17, 3) and none.keypoints.shape == (0, 17, 3)
    ids = poses.candidate_ids[poses.candidate_ids >= 0]
    assert len(ids) and (matching == "argmax" or len(ids) == len(ids.unique()))
    if evidence.startswith("prn"):
        prn = model.evidence.network
        assert prn.residual == (evidence == "prn") and len(prn.hidden) == 2


def test_weights_that_hold_more_than_data_need_trust(tmp_path, monkeypatch):
    cfg = get_cfg()
    add_mpn_config(cfg)
    cfg.MODEL.ASSEMBLER.EVIDENCE = "prn"
    cfg.MODEL.PRN.NODES = 2
    weights = {f"assembler.{n}": x for n, x in build_pose_assembler(cfg).state_dict().items()}
    cfg.MODEL.ASSEMBLER.WEIGHTS = str(tmp_path / "prn.pth")
    torch.save({"model": weights, "args": Path("somewhere")}, cfg.MODEL.ASSEMBLER.WEIGHTS)
    monkeypatch.setenv(TRUST, "0")
    with pytest.raises(ValueError, match=r"is no checkpoint: it holds pathlib.*--trust-pickle"):
        build_pose_assembler(cfg)
    monkeypatch.setenv(TRUST, "1")
    for name, value in build_pose_assembler(cfg).state_dict().items():
        assert torch.equal(value, weights[f"assembler.{name}"])


@pytest.mark.parametrize(
    ("broken", "line"),
    [
        (lambda x: x.to_sparse(), "hidden.0.weight' is a tensor of another"),
        (lambda x: x.fill_(float("nan")), "has numbers that are NaN or infinite"),
        (lambda x: 3, "hidden.0.weight' is a int instead of a tensor"),
    ],
)
def test_weights_that_are_no_plain_finite_tensors_are_named(tmp_path, broken, line):
    cfg = get_cfg()
    add_mpn_config(cfg)
    cfg.MODEL.ASSEMBLER.EVIDENCE = "prn"
    cfg.MODEL.PRN.NODES = 2
    weights = {f"assembler.{n}": x for n, x in build_pose_assembler(cfg).state_dict().items()}
    name = next(n for n in weights if n.endswith("hidden.0.weight"))
    weights[name] = broken(weights[name].clone())
    cfg.MODEL.ASSEMBLER.WEIGHTS = str(tmp_path / "prn.pth")
    torch.save({"model": weights}, cfg.MODEL.ASSEMBLER.WEIGHTS)
    with pytest.raises(ValueError, match=f"prn.pth is no checkpoint: its .*{line}"):
        build_pose_assembler(cfg)


def test_keras_files_are_to_be_converted(tmp_path):
    cfg = get_cfg()
    add_mpn_config(cfg)
    cfg.MODEL.ASSEMBLER.EVIDENCE = "prn"
    cfg.MODEL.ASSEMBLER.WEIGHTS = str(tmp_path / "prn.H5")
    Path(cfg.MODEL.ASSEMBLER.WEIGHTS).write_bytes(b"\x89HDF")
    with pytest.raises(ValueError, match=r"prn\.H5 is a file of Keras.*convert_checkpoint"):
        build_pose_assembler(cfg)


def test_unknown_parts_list_the_known_ones():
    cfg = get_cfg()
    add_mpn_config(cfg)
    cfg.MODEL.ASSEMBLER.EVIDENCE = "oracle"
    with pytest.raises(ValueError, match="identity, learned, max, prn"):
        build_pose_assembler(cfg)
