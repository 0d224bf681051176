"""Deep Hebbian CNNs: five layers by HWTA and HPCA, hybrids with backprop, and SoftHebb's network."""
