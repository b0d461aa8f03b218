"""Recurrent layers: RNN, LSTM and GRU over whole sequences, dense or packed, in one or both directions.

`layer` decides which kernels run: `persistent` walks all steps in one launch, `step` launches once per step; `weights`
and `recompute` serve the backward of both. They share the cells' arithmetic (`cells`), where rows lie (`place`) and the
tile rules (`tiles`). This module offers what a layer is given and returns (`spec`); it does without Triton.
"""

from tinynet_kernels.recurrent.spec import GATES, Gradients, Saved, Sequences, Wanted, Weights, packed_sequences

__all__ = ["GATES", "Gradients", "Saved", "Sequences", "Wanted", "Weights", "packed_sequences"]
