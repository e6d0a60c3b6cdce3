"""The paper's numbers, read off its results figure to about 0.005. Our runs are other models and data."""

PAPER = {  # our task: the data set that it is modelled on, the paper's share of the gap closed, its variance ratio
    "quality": ("UltraFeedback", 0.82, 0.64),
    "attributes": ("HelpSteer", 0.77, 0.72),
    "reasoning": ("Orca", 0.41, 0.68),
}
CELLS = ("P1-F1", "P1-F2", "P2-F1", "P2-F2")  # prompter - frozen model
# A line per cell: mean, then variance, of no fine-tuning, Align-Pro and the oracle.
_FIGURE = """
quality    P1-F1  0.389 1.127 1.368  1.871 1.142 1.798
quality    P1-F2  0.695 1.331 1.403  1.843 1.417 1.790
quality    P2-F1  0.456 1.130 1.398  2.240 1.215 1.924
quality    P2-F2  0.703 1.400 1.481  2.192 1.373 1.940
reasoning  P1-F1  1.590 1.851 2.456  1.907 1.221 1.439
reasoning  P1-F2  1.959 2.375 2.612  1.886 1.399 1.650
reasoning  P2-F1  1.122 1.434 2.182  1.975 1.332 1.310
reasoning  P2-F2  1.822 2.054 2.408  1.657 1.117 1.364
attributes P1-F1  0.111 0.733 0.845  0.982 0.867 0.817
attributes P1-F2  0.252 0.705 1.001  1.136 0.750 0.887
attributes P2-F1  0.194 0.812 0.950  1.070 0.723 0.968
attributes P2-F2  0.290 0.847 0.964  0.945 0.610 0.857
"""
PAPER_CELLS = {(w[0], w[1]): tuple(map(float, w[2:])) for line in _FIGURE.strip().splitlines() for w in [line.split()]}
