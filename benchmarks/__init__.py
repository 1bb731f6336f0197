"""Benchmarks of Halfstep against its peers: networks, data, peers, measurements."""
