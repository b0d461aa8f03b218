"""Layer normalization of rows, and its form without a mean, RMS normalization; for one row x [K]:

    mean = sum_k x_k / K (0 for RMS)      rstd = (sum_k (x_k - mean)^2 / K + eps)^-1/2
    n_k = (x_k - mean) rstd               y_k = act(z_k), z_k = n_k w_k + b_k

    dz_k = dy_k act'(z_k)                 dw_k = sum of dz_k n_k over rows,  db_k = sum of dz_k over rows
    g_k = dz_k w_k                        dx_k = rstd (g_k - mean(g) - n_k mean(g n)), without mean(g) for RMS

With a residual r, x is the rounded sum of both inputs, which is a second output; its upstream gradient is added to dx.

Tiling: a row that fits one tile is read once: one program holds block_rows rows of block_columns >= K columns. The mean
comes first, then the squares of the deviations. Longer rows are read twice, block_columns at a time; statistics of
blocks are merged (Chan et al. 1979). Saved are mean and rstd in fp32; z is recomputed.

The backward's programs each walk `tiles` tiles downwards and leave partial sums of dw and db in fp32, which
`sum_partials` adds in a fixed order. Rows that don't fit one tile get their parameters' gradients from a kernel of its
own, whose tiles walk down the columns.

Source: Ba et al. 2016; Zhang and Sennrich 2019 (RMS).

`forward` and `backward` hold kernels and launchers, `rows` what they share. Nothing is imported here.
"""
