"""What scores of several seeds over the same items say: intervals, tests, power, tuning and scaling. numpy alone.

Nothing here knows of run folders. The arrays are ``float64[S, N]``, S seeds (rows) by N items (columns), with
``int64[N]`` clusters: items of one image or concept are not independent, so clusters are what is drawn. All seeds and
all cells of a study have the same items, so differences are taken seed by seed and item by item first.

    S seeds    N items    G clusters    K contrasts (differences of two cells)    R resamples    P sizes of a ladder

Start reading in ``contrasts.py``. The approach is that of Miller, "Adding Error Bars to Evals" (arXiv:2411.00640), for
items, and of Bouthillier et al., "Accounting for Variance in Machine Learning Benchmarks" (arXiv:2103.03098), and Du,
"When +1% Is Not Enough" (arXiv:2511.19794), for seeds; each file says where it differs.
"""
