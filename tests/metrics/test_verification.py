import numpy as np
import pytest
import torch

from mlbench.errors import MlbenchError
from mlbench.metrics import evaluate, evaluate_pairs, verification
from mlbench.metrics.sides import Side
from mlbench.metrics.verification import compare_pairs

pytestmark = pytest.mark.numeric
STEP = 2.0**-15


def clustered(classes, images, seed, dim=6, noise=0.6):
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(classes), images))
    rows = rng.normal(size=(classes, dim))[labels] + noise * rng.normal(size=(len(labels), dim))
    return rows, labels


def pairs_of(rows, labels, gallery=None, gallery_labels=None):
    """Cosines of all pairs, and whether they are of one class, read out of the whole matrix."""

    def unit(x):
        return x / np.linalg.norm(x, axis=1, keepdims=True)

    alone = gallery is None
    others, other_labels = (rows, labels) if alone else (gallery, np.asarray(gallery_labels))
    cosines = unit(rows) @ unit(others).T
    genuine = labels[:, None] == other_labels[None]
    counted = np.triu(np.ones_like(genuine), 1) if alone else np.ones_like(genuine)
    return cosines[counted], genuine[counted]


def tar_at(cosines, genuine, far):
    """The definition: the lowest threshold that accepts at most ``far`` of the impostors."""
    impostors = np.sort(cosines[~genuine])[::-1]
    highest_refused = impostors[int(far * len(impostors) + 1e-9)]
    return (cosines[genuine] > highest_refused).mean(), highest_refused


@pytest.mark.parametrize("with_gallery", [False, True])
@pytest.mark.parametrize("classes", [5, 130])
def test_rates_are_those_of_all_pairs(with_gallery, classes):
    """With more classes than there are blocks too."""
    rows, labels = clustered(classes, 1200 // classes, 0)
    others = {}
    if with_gallery:
        gallery, gallery_labels = clustered(classes, 600 // classes, 0)
        others = {"gallery": gallery, "gallery_labels": gallery_labels}
    found = evaluate_pairs(rows, labels, **others)
    cosines, genuine = pairs_of(rows, labels, **others)
    assert (found.genuine, found.impostor) == (genuine.sum(), (~genuine).sum())
    assert [point.far for point in found.points] == [0.1, 0.01, 0.001, 0.0001]
    for point in found.points[:3]:
        accepted = cosines >= point.threshold.value
        assert accepted[genuine].mean() == pytest.approx(point.tar.value, abs=3 / genuine.sum())
        tar, threshold = tar_at(cosines, genuine, point.far)
        assert 0 <= point.threshold.value - threshold + STEP < 2.5 * STEP
        assert point.tar.value <= tar + 1e-12
    accepted = cosines >= np.quantile(cosines[genuine], found.eer.value)
    assert accepted[~genuine].mean() == pytest.approx(found.eer.value, abs=2e-3)


def test_by_hand():
    """Cosines: 0.8 of the one pair of a class; 0.96, 0, 0.6 and 0.6 of pairs of two classes."""
    rows = [[1.0, 0.0], [0.8, 0.6], [0.6, 0.8], [0.0, 1.0]]
    found = evaluate_pairs(rows, [0, 0, 1, 2])
    assert (found.genuine, found.impostor, found.points) == (1, 5, ())
    # Of five impostors 0.96 and (of images 2 and 3) 0.8 are not below the genuine pair's 0.8.
    assert found.eer.value == pytest.approx((2 / 5 + 0) / 2)


def test_images_of_one_group_are_no_pair():
    rows, labels = clustered(6, 40, 1)
    groups = np.random.default_rng(1).integers(0, 30, len(labels))
    found = evaluate_pairs(rows, labels, groups=groups)
    genuine = pairs_of(rows, labels)[1]
    apart = (groups[:, None] != groups[None])[np.triu_indices(len(rows), 1)]
    assert found.genuine == (genuine & apart).sum()
    assert found.impostor == (~genuine & apart).sum()


def test_intervals_are_of_the_jackknife_over_classes():
    rows, labels = clustered(8, 30, 2)
    found = evaluate_pairs(rows, labels)
    without = [evaluate_pairs(rows[labels != k], labels[labels != k]) for k in range(8)]
    for place, get in enumerate((lambda p: p.tar, lambda p: p.threshold)):
        values = np.array([get(each.points[1]).value for each in without])
        error = np.sqrt(7 / 8 * ((values - values.mean()) ** 2).sum())
        interval = get(found.points[1])
        assert interval.high - interval.value == pytest.approx(
            2.3646 * error + place * STEP, rel=1e-4
        )


def test_blocks_of_rows_and_columns_change_nothing(monkeypatch):
    rows, labels = clustered(7, 20, 3)
    whole = evaluate_pairs(rows, labels)
    monkeypatch.setattr(verification, "_ROWS", 8)
    assert evaluate_pairs(rows, labels) == whole


def test_a_rate_is_given_only_where_thirty_pairs_would_be_accepted_falsely():
    rows, labels = clustered(3, 10, 4)
    found = evaluate_pairs(rows, labels)
    assert found.impostor == 300
    assert [point.far for point in found.points] == [0.1]
    assert found.roc[0][0] == pytest.approx(0.1)
    assert found.roc[-1] == (1.0, 1.0)


def test_without_pairs_of_one_class_there_is_no_verification():
    rows = torch.eye(3)
    assert compare_pairs(Side(rows, np.arange(3), None)) is None
    with pytest.raises(MlbenchError, match="needs a pair of images of one class"):
        evaluate_pairs(rows, [0, 1, 2])


def test_evaluate_gives_the_figures_by_name():
    rows, labels = clustered(4, 15, 5)
    metrics = evaluate(rows, labels, verification=True, nmi_restarts=1)
    found = evaluate_pairs(rows, labels)
    assert metrics["TAR@FAR=0.1"] == found.points[0].tar.value
    assert metrics["threshold@FAR=0.1"] == found.points[0].threshold.value
    assert metrics["EER"] == found.eer.value
