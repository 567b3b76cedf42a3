"""The dataclasses that carry the data from a source to a loss, and what every package needs.

source -> Example -> Batch -> encoder -> bridge -> decoder -> ModelOutput -> Objective -> Loss

`batch`, `views`, `model_output` and `loss` hold the dataclasses; they compute no model and no objective.

Shape letters used in every docstring of the package:

    B images of a batch       C captions of a batch      N patch tokens of an image
    M memory tokens (bridge)  T text tokens of a caption P supervised text positions of a batch
    D width                   E embedding width          V vocabulary          W ranks
    Q image-text pairs
"""
