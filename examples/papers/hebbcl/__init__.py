"""HebbCL's experiments: one layer that learns a stream of classes by a local rule, freezes and grows."""
