"""The recurrent decoder at test time: when writing stops, LSTM2's order, joints and scores."""

from __future__ import annotations

import pytest
import torch
from test_recurrent_association import K, Script, decoder

from mpn_d2.modeling.meta_arch.sequence_inference import (
    WrittenPeople,
    read_people,
    score_people,
    write_people,
)


def test_writing_stops_at_omega_or_when_the_steps_run_out_and_images_do_not_mix():
    scores = [[0.9, 0.8, 0.1, 0.9], [0.2] * 4, [0.9] * 4]
    maps = [torch.rand(4, K, 6, 7) for _ in scores]

    class Picky(Script):
        def look(self, features):
            return features

        def start(self, lstm, features):
            return [(features[:, :1], features[:, :1])]

        def write(self, features, state, step):
            rows = [int(i) for i in features[:, 0, 0, 0]]
            given = torch.tensor([self.scores[i][step] for i in rows])
            return torch.stack([self.given[i][step] for i in rows]), given.logit(), state

    features = torch.arange(3.0).view(3, 1, 1, 1).expand(3, 5, 6, 7)
    options = {"omega": 0.5, "most": 3, "order": "learned", "tau": 0.1}
    found = write_people(Picky(scores, maps), features, **options)
    assert [len(x.maps) for x in found] == [2, 0, 3]
    assert torch.equal(found[0].maps, maps[0][:2]) and torch.equal(found[2].maps, maps[2][:3])
    assert found[0].last_score == pytest.approx(0.1) and found[2].last_score is None
    alone = write_people(Picky(scores, maps), features[2:], **options)[0]
    assert torch.equal(alone.maps, found[2].maps)


@torch.no_grad()
def test_second_lstm_at_test_time_gives_everybody_back_in_place():
    net = decoder().eval()
    torch.nn.init.constant_(net.stop.bias, 3.0)
    features = torch.rand(1, 5, 6, 7)
    options = {"omega": 0.3, "most": 4, "tau": 0.0}
    found = write_people(net, features, order="inverse", **options)[0]
    seen = net.look(features)
    state, wanted = net.start(net.lstm2, seen), []
    for maps in found.first_maps.flip(0):
        maps, state = net.write_again(seen, maps[None], state)
        wanted.append(maps[0])
    torch.testing.assert_close(found.maps, torch.stack(wanted).flip(0))


def test_joints_below_tau_are_dropped_and_poses_scored():
    maps = torch.zeros(2, K, 8, 8)
    maps[0, 0, 2, 3], maps[0, 1, 4, 4] = 0.5, 0.01
    maps[1, 2, 1, 1] = 1.3
    written = WrittenPeople(maps, maps, torch.tensor([0.9, 0.4]), 0.1)
    poses = read_people(written, 4, (32, 32), tau=0.015, subcell="quarter")
    assert (poses[..., 2] > 0).tolist() == [[True, False, False], [False, False, True]]
    assert poses[0, 1].tolist() == [0, 0, 0]
    assert poses[0, 0, 2] == 0.5 and poses[1, 2, 2] == 1.0
    assert score_people(poses, written.stop_scores, "joints").tolist() == [0.5, 1.0]
    torch.testing.assert_close(
        score_people(poses, written.stop_scores, "product"), torch.tensor([0.45, 0.4])
    )
    torch.testing.assert_close(
        score_people(poses, written.stop_scores, "stop"), torch.tensor([0.9, 0.4])
    )
