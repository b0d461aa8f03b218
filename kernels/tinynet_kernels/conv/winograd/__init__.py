"""Winograd's minimal filtering: 3 x 3 convolutions of stride 1 with a half or a quarter of the products.

    Y = A^T [sum over c of (G g G^T) (B^T d B)] A        element by element in the brackets

of a patch d of (m + 2) x (m + 2) pixels and a filter g of 3 x 3 taps, to a tile Y of m x m output pixels: (m + 2)^2
products per tile and channel where the definition has 9 m^2. m is 2 or 4 (`transforms.py`).

    tiles.py             by rule: where it is faster, m, and the tile of a program
    transforms.py        the transforms of a line, and of a square
    patches.py           the pixels of patches and tiles
    filters.py           G g G^T of all filters, where programs don't compute it themselves
    forward.py           the convolution, and its data gradient: the same of dZ and reversed taps
    weight_gradient.py   G^T [sum over tiles of (A dZ A^T) (B^T d B)] G

A value that is not finite would spread over its tile, and large values may overflow in the transforms. Each program
therefore reports whether all its results are finite; if not, the definition is computed (`check.py`).

Source: Winograd 1980; Lavin and Gray 2016, arXiv:1509.09308.
"""
