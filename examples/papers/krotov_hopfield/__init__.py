"""PyTorch-Hebbian's experiment on Fashion-MNIST: a convolution that learns without labels."""
