"""Recurrent layers: RNN, LSTM and GRU over whole sequences, dense or packed, in one or both directions.

This module offers what a layer is given and returns (`spec`); it does without Triton. The launchers are in `layer`.
"""

from tinynet_kernels.recurrent.spec import GATES, Gradients, Saved, Sequences, Wanted, Weights, packed_sequences

__all__ = ["GATES", "Gradients", "Saved", "Sequences", "Wanted", "Weights", "packed_sequences"]
