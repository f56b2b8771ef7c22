"""Names for the arrays that pass between the steps."""

import numpy as np
import numpy.typing as npt

Labels = npt.NDArray[np.int64]
"""``(N,)`` classes, 0-based."""

Indices = npt.NDArray[np.int64]
"""``(N,)`` positions in a data set."""

ImageArray = npt.NDArray[np.uint8]
"""``(H, W, 3)`` RGB."""
