"""The dimension key: one letter per size, the same in annotations, specs and error messages.

| letter | size                                   | letter | size                               |
|--------|----------------------------------------|--------|------------------------------------|
| B      | batch rows                             | H      | attention heads                    |
| T      | positions of this call (queries)       | K      | width of one head, D = H * K       |
| S      | positions visible as keys, S <= P      | C      | query, key, value: always 3        |
| P      | positions that a cache can hold        | D      | model width (hidden_dim)           |
| V      | vocabulary entries                     | F      | MLP width (intermediate_dim)       |
| L      | layers                                 | R      | LoRA rank                          |
| M, N   | any other width                        |        |                                    |

`Float[Array, "B T D"]`: any floating type, rank 3. The tests execute these with jaxtyping; otherwise they cost nothing.
"""

import sys
from typing import TYPE_CHECKING, Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

if TYPE_CHECKING:
    from typing import Annotated as Bool
    from typing import Annotated as Float
    from typing import Annotated as Int
elif "jaxtyping" in sys.modules:  # only a test run imports it first: nobody else pays for the import
    from jaxtyping import Bool, Float, Int

    Array = np.ndarray
else:

    class _Inert:
        def __class_getitem__(cls, item: object) -> type[Any]:
            return Array

    Bool = Float = Int = _Inert

__all__ = ["Array", "Bool", "Float", "Int"]
