"""What the tiny checkpoints of scripts/projectors.py have in common."""

# Lengths of the encoder, its network, the text model; patches; layers; heads.
WIDTH, FFN, TEXT, PATCH, LAYERS, HEADS = 64, 96, 128, 14, 3, 4
PREPROCESSOR = {"image_mean": [0.5, 0.48, 0.4], "image_std": [0.26862954, 0.5, 0.25]}


def both(name, *shape):
    """A matrix and its bias."""
    return {name + ".weight": shape, name + ".bias": shape[:1]}


def subsampling(prefix):
    """The convolutions in front of a conformer, by their numbers among all modules."""
    shapes = {}
    for number, shape in ((0, (8, 1, 3, 3)), (2, (8, 1, 3, 3)), (3, (8, 8, 1, 1)), (5, (8, 1, 3, 3)), (6, (8, 8, 1, 1))):
        shapes |= both(f"{prefix}{number}", *shape)
    return shapes
