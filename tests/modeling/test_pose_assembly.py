"""An assembler by itself: its losses, its state, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from detectron2.modeling import build_model

from mpn_d2.engine.checkpoint import PoseCheckpointer
from mpn_d2.modeling.assembly import build_pose_assembler

CONFIG = "MultiPoseNet/PRN_poses.yaml"
SMALL = ["MODEL.PRN.NODES", "4", "MODEL.PRN.DROPOUT", "0.0"]
WHOLE = "MultiPoseNet/R_18_small.yaml"


def people(count: int) -> list[dict]:
    """Two people to an image, in boxes beside one another."""
    keypoints = torch.rand(2, 17, 3) * torch.tensor([40.0, 60.0, 0.0]) + torch.tensor([5, 5, 2])
    boxes = torch.tensor([[0.0, 0.0, 30.0, 70.0], [25.0, 0.0, 50.0, 70.0]])
    return [{"keypoints": keypoints, "owner": i % 2, "box": boxes[i % 2]} for i in range(count)]


def test_losses_are_the_assemblers_times_the_weight(paper_config):
    cfg = paper_config(CONFIG, [*SMALL, "MODEL.LOSS.ASSEMBLY_WEIGHT", "3.0"])
    model = build_model(cfg).train()
    assert {name for name, _ in model.named_children()} == {"assembler"}
    samples = people(3)
    losses = model(samples)
    [(name, loss)] = losses.items()
    alone = build_pose_assembler(cfg).train()
    alone.load_state_dict(model.assembler.state_dict())
    assert name.split("_")[:2] == ["loss", "assembly"]
    torch.testing.assert_close(loss, 3 * alone.losses(samples)[name])
    loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    assert float(model([])[name].detach()) == 0.0


def test_published_size(paper_config):
    model = build_model(paper_config(CONFIG))
    assert sum(p.numel() for p in model.parameters()) == 70_224_352
    assert model.part_modules() == {"assembly": [model.assembler]}
    assert model.train_parts == ("assembly",) and model.device.type == "cpu"


def test_images_and_other_parts_are_refused(paper_config):
    model = build_model(paper_config(CONFIG, SMALL))
    for mode, batch in ((True, [{"image": torch.zeros(3, 4, 4)}]), (False, people(1))):
        with pytest.raises(ValueError, match=r"takes no images: .*tools/assemble\.py"):
            model.train(mode)(batch)
    for parts in ("['keypoint']", "['keypoint','assembly']"):
        with pytest.raises(ValueError, match=r"MODEL\.TRAIN_PARTS is .*--stage assembly"):
            build_model(paper_config(CONFIG, [*SMALL, "MODEL.TRAIN_PARTS", parts]))
    with pytest.raises(ValueError, match=r"MODEL\.JOINT_LEVEL is 1"):
        build_model(paper_config(CONFIG, [*SMALL, "MODEL.JOINT_LEVEL", "1"]))


def test_checkpoints_travel_to_a_whole_network_and_back(paper_config, tmp_path):
    same = [*SMALL, "MODEL.PRN.NUM_HIDDEN", "1", "MODEL.PRN.SOFTMAX", "global"]
    alone, whole = build_model(paper_config(CONFIG, SMALL)), build_model(paper_config(WHOLE, same))
    names = set(alone.state_dict())
    assert names == {name for name in whole.state_dict() if name.startswith("assembler.")}
    PoseCheckpointer(alone, str(tmp_path)).save("alone")
    other_parts = {n: t.clone() for n, t in whole.state_dict().items() if n not in names}
    checkpointer = PoseCheckpointer(whole, str(tmp_path))
    checkpointer.load(str(tmp_path / "alone.pth"))
    assert checkpointer.not_loaded.isdisjoint(names)
    for name, value in whole.state_dict().items():
        expected = alone.state_dict()[name] if name in names else other_parts[name]
        assert torch.equal(value, expected), name
    # Back, whole: the other parts of the file are no mistake.
    checkpointer.save("whole")
    again = build_model(paper_config(CONFIG, SMALL))
    PoseCheckpointer(again, strict=True).load(str(tmp_path / "whole.pth"))
    assert all(torch.equal(t, alone.state_dict()[n]) for n, t in again.state_dict().items())
    # A file without the assembler still is.
    torch.save({"model": other_parts}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"missing: assembler\."):
        PoseCheckpointer(again, strict=True).load(str(tmp_path / "other.pth"))
