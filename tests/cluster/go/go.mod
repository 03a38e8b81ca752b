// Programs of the cluster tests that run in pods (probe) or make what a cluster needs (kit). Standard library only.
module netd.invalid/cluster-tests

go 1.26.0
