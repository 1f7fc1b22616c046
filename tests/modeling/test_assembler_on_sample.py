"""The whole assembly on the people of the bundled photographs: oracle evidence, training."""

from __future__ import annotations

import pytest
import torch
from assembler_cases import ONE_TO_ONE, assemble_grids, assembler, network
from detectron2.data.datasets import load_coco_json

from mpn_d2.data.association import build_association_samples
from mpn_d2.structures.outputs import Candidates


def coco_images(path):
    """Per image of the bundled sample: its samples, candidates (true joints), boxes, owners."""
    images = {}
    for sample in build_association_samples(load_coco_json(str(path), "", "mpn_test_assembly"), 1):
        images.setdefault(sample["image_id"], []).append(sample)
    result = []
    for samples in images.values():
        keypoints = samples[0]["keypoints"]
        row, kind = (keypoints[..., 2] > 0).nonzero().unbind(1)
        candidates = Candidates(keypoints[row, kind, :2], kind, torch.ones(len(row)))
        result.append((samples, candidates, torch.stack([s["box"] for s in samples]), row))
    return result


def owner_share(images, poses):
    """Share of the labelled joints of the boxes' people that were given to their owner."""
    right = total = 0
    for (samples, candidates, _, row), pose in zip(images, poses):
        for box, sample in enumerate(samples):
            own = (row == sample["owner"]).nonzero()[:, 0].tolist()
            total += len(own)
            right += sum(int(pose.candidate_ids[box, candidates.types[i]]) == i for i in own)
    return right / total


@pytest.fixture(scope="module")
def sample_images(sample_dir):
    return coco_images(sample_dir / "annotations" / "person_keypoints_train.json")


@pytest.mark.parametrize("matching", ONE_TO_ONE, ids=lambda m: type(m).__name__)
def test_oracle_evidence_gives_real_joints_to_their_owners(matching, sample_images):
    model = assembler(matching=matching, num_keypoints=17)
    batch = model.collate([i[1] for i in sample_images], [i[2] for i in sample_images])
    _, labels = model.evidence.encode_samples([s for image in sample_images for s in image[0]])
    share = owner_share(sample_images, assemble_grids(model, batch, labels))
    assert share > 0.98
    # It is the evidence that does it: without any, the boxes overlap too much.
    plain = model.inference([i[1] for i in sample_images], [i[2] for i in sample_images])
    assert owner_share(sample_images, plain) < share - 0.05


def test_small_network_overfits_the_sample(sample_images):
    torch.manual_seed(0)
    prn = network(num_keypoints=17, nodes=32, dropout=0.0)
    model = assembler(prn, num_keypoints=17).train()
    samples = [s for image in sample_images for s in image[0]]
    scene = [image[1] for image in sample_images], [image[2] for image in sample_images]
    untrained = owner_share(sample_images, model.inference(*scene))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    values = []
    for _ in range(100):
        optimizer.zero_grad()
        loss = model.losses(samples)["loss_assembly_prn"]
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    _, labels = model.evidence.encode_samples(samples)
    # What is left above the entropy of the label itself is what the network gets wrong.
    clamped = labels.clamp(1e-7, 1 - 1e-7)
    floor = -(labels * clamped.log() + (1 - labels) * torch.log1p(-clamped)).mean().item()
    assert values[-1] - floor < 0.5 * (values[0] - floor)
    trained = owner_share(sample_images, model.eval().inference(*scene))
    assert trained >= 0.98 and trained > untrained + 0.03


@pytest.mark.parametrize("mode", ["peaks", "heatmap"])
def test_losses_train_and_an_empty_batch_is_zero(mode, sample_images):
    model = assembler(network(17), num_keypoints=17, mode=mode).train()
    samples = [s for image in sample_images[:2] for s in image[0]]
    model.losses(samples)["loss_assembly_prn"].backward()
    gradients = [p.grad.abs().sum() for p in model.parameters()]
    assert all(torch.isfinite(g) for g in gradients) and sum(gradients) > 0
    model.zero_grad()
    zero = model.losses([])["loss_assembly_prn"]
    zero.backward()
    assert zero.item() == 0 and all(p.grad.abs().sum() == 0 for p in model.parameters())


def test_training_and_inference_see_the_same_input(sample_images):
    model = assembler(num_keypoints=17)
    samples, candidates, boxes, _ = sample_images[0]
    trained, _ = model.evidence.encode_samples(samples)
    torch.testing.assert_close(
        model.evidence.encode_people(model.collate([candidates], [boxes])), trained
    )
