"""An etcd cluster in memory, served over real loopback gRPC: what FakeRuntime runs (see `etcdops.runtimes.fake`)."""
