"""serving.client.dataset.plan: labels as asked for, every index once, rows in one order."""

import random
from dataclasses import replace

import numpy as np
import pytest

from serving.client.dataset.label_weights import label_weights
from serving.client.dataset.plan import DatasetPlan, Span, apportion
from serving.client.results import Model

MNIST_TRAIN = (5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949)
PLAN = DatasetPlan(
    model="tiny", model_version="1.0.0", sampler="ddpm", num_steps=4, guidance_scale=1.0, seed=7,
    label_names=("zero", "one", "two"), label_weights=(1, 0, 2), train_count=10, test_count=5,
    height=4, width=4, channels=1, formats=("idx",),
)  # fmt: skip
MODEL = Model("tiny", "1", ("zero", "one", "two"), 4, 4, 1, 20, "ddpm", 4, 1.0, (30, 10, 20))


def test_60000_images_have_mnists_own_counts() -> None:
    assert apportion(60_000, MNIST_TRAIN) == MNIST_TRAIN
    tenth = apportion(6_000, MNIST_TRAIN)
    assert sum(tenth) == 6_000
    assert all(abs(10 * part - whole) < 10 for part, whole in zip(tenth, MNIST_TRAIN, strict=True))


def test_shares_add_up_and_are_within_one_of_exact_ones() -> None:
    draw = random.Random(0)
    for _ in range(200):
        weights = [draw.randrange(1000) for _ in range(draw.randrange(1, 12))]
        weights[draw.randrange(len(weights))] += 1
        total = draw.randrange(5000)
        shares = apportion(total, weights)
        assert sum(shares) == total
        for share, weight in zip(shares, weights, strict=True):
            assert abs(share * sum(weights) - total * weight) < sum(weights)
            assert weight or not share


def test_no_index_is_in_two_rows_and_every_one_is_in_a_row() -> None:
    rows = np.concatenate([PLAN.row_order("train"), PLAN.row_order("test")])
    assert sorted(rows) == list(range(15))
    assert set(PLAN.row_order("train")) == set(range(10))
    labels = PLAN.labels()
    assert np.bincount(labels[:10], minlength=3).tolist() == [3, 0, 7]
    assert np.bincount(labels[10:], minlength=3).tolist() == [2, 0, 3]


def test_the_order_of_the_rows_is_mixed_and_the_same_forever() -> None:
    assert PLAN.row_order("train").tolist() == [8, 4, 3, 5, 7, 9, 2, 6, 0, 1]
    assert replace(PLAN, seed=8).row_order("train").tolist() != PLAN.row_order("train").tolist()
    plan = replace(PLAN, train_count=6_000, label_weights=(1, 1, 1))
    first = plan.labels()[plan.row_order("train")[:600]]
    assert np.bincount(first).min() > 150, "every label is among the first rows"


def test_spans_are_of_one_label_no_longer_than_asked_for_and_only_of_what_is_missing() -> None:
    nothing = np.zeros(15, dtype=np.bool_)
    everything = [Span(0, 0, 3), Span(2, 3, 4), Span(2, 7, 3), Span(0, 10, 2), Span(2, 12, 3)]
    assert list(PLAN.spans(nothing, 4)) == everything
    drawn = nothing.copy()
    drawn[[0, 1, 2, 5, 14]] = True
    missing = [Span(2, 3, 2), Span(2, 6, 4), Span(0, 10, 2), Span(2, 12, 2)]
    assert list(PLAN.spans(drawn, 4)) == missing
    assert not list(PLAN.spans(~nothing, 4))


def test_labels_are_as_in_training_or_equal_or_as_said() -> None:
    assert label_weights("training", MODEL) == (30, 10, 20)
    assert label_weights("training", replace(MODEL, train_label_counts=())) == (1, 1, 1)
    assert label_weights("equal", MODEL) == (1, 1, 1)
    assert label_weights("2=3, 0=1", MODEL) == (1, 0, 3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("many", "LABEL=WEIGHT"),
        ("0=1,1=x", "got '1=x'"),
        ("0=-1", "got '0=-1'"),
        ("3=1", "label 3 is not in 0..2"),
        ("1=1,1=2", "label 1 is given twice"),
        ("1=0", "at least one weight"),
    ],
)
def test_labels_that_make_no_sense_are_named(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        label_weights(text, MODEL)
