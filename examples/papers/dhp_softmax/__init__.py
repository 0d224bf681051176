"""DHP Softmax's experiments: tasks learnt one after the other by gradients, with a Hebbian trace in the readout."""
