"""Maps to make labels of: drawn at random, and by hand."""

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from data_contracts.label_settings import LabelSettings
from sdrpn_core.pseudo_labels import make_pseudo_labels

DEFAULT = LabelSettings.preset("default")
LLAVA = LabelSettings.preset("reference-llava")
QWEN = LabelSettings.preset("reference-qwen")
PRESETS = [DEFAULT, LLAVA, QWEN]
FOREGROUND, BACKGROUND, IGNORE = (int(label) for label in (1, 0, -100))

ATTENTION = st.one_of(
    # 0.1 and 0.2 of the maximum: cells that lie exactly on a threshold.
    st.sampled_from([0.0, 0.005, 0.05, 0.1, 0.2, 0.25, 0.5, 1.0]),
    st.floats(0.0, 1.0, width=32),
)
SINKS = st.sampled_from([0.0, 0.0009, 0.001, 0.0011, 0.01, 0.5])
SHAPES = hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=9)
DTYPES = st.sampled_from([np.float32, np.float64])
IMAGE_SIZE = st.tuples(st.integers(1, 3000), st.integers(1, 3000))


@st.composite
def samples(draw, square=False):
    shape = draw(SHAPES)
    shape = (shape[0], shape[0]) if square else shape
    dtype = draw(DTYPES)
    grounding = draw(hnp.arrays(dtype, shape, elements=ATTENTION, fill=st.just(0.0)))
    sink = draw(hnp.arrays(dtype, shape, elements=SINKS, fill=st.just(0.0)))
    return grounding, sink


def one(grounding, sink=None, label_settings=DEFAULT, image_size=None):
    sinks = None if sink is None else sink[None]
    sizes = None if image_size is None else np.array([image_size])
    return make_pseudo_labels(grounding[None], sinks, label_settings, sizes)


def blob(shape, y0, x0, y1, x1, value=1.0):
    grounding = np.zeros(shape, np.float32)
    grounding[y0:y1, x0:x1] = value
    return grounding
