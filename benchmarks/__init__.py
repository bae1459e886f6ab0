"""Measurements that stand beside others taken in the same minute: a bare gRPC stream, and Flower in deployment mode."""
