"""A model as llama.cpp takes it: what its file says of the architecture, the weights and the vocabulary; and that file, run."""
