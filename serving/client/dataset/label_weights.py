"""How the labels share a data set: as in training, equally, or as the caller says."""

from serving.client.results import Model

TRAINING = "training"
EQUAL = "equal"


def label_weights(text: str, model: Model) -> tuple[int, ...]:
    """Returns an integer for each label of the model.

    Args:
        text: "training" (equal where the model does not say), "equal", or "LABEL=WEIGHT,..." with
            integers; labels that are not named are not drawn.
        model: whose labels they are.

    Raises:
        ValueError: one line that names what is wrong.
    """
    labels = len(model.label_names)
    if text == TRAINING and sum(model.train_label_counts) > 0:
        return model.train_label_counts
    if text in (TRAINING, EQUAL):
        return (1,) * labels
    weights = [0] * labels
    for part in text.split(","):
        label, _, weight = part.partition("=")
        if not (label.strip().isdecimal() and weight.strip().isdecimal()):
            raise ValueError(
                f"{TRAINING}, {EQUAL} or LABEL=WEIGHT,LABEL=WEIGHT... with integers, got {part!r}"
            )
        if int(label) >= labels:
            raise ValueError(f"label {int(label)} is not in 0..{labels - 1}, what {model.name} has")
        if weights[int(label)]:
            raise ValueError(f"label {int(label)} is given twice")
        weights[int(label)] = int(weight)
    if not any(weights):
        raise ValueError("at least one weight must be above 0")
    return tuple(weights)
