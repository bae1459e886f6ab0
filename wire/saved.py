"""What is in the file of a saved model, or of a run's first one: safetensors, the tensors under their own names, and a header."""

LEARNER_KEY = "learner"
"""Key of the header: the learner and its parameters, JSON."""

LAYOUT_KEY = "layout"
"""Key of the header: the canonical JSON of the layout of what travels."""

OPTIMIZER_PREFIX = "optimizer/"
"""What the names of the server optimizer's own tensors begin with: they are in a checkpoint, and no part of the model."""
