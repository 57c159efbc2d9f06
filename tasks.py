from etcdops.tasks import namespace  # noqa: F401, D100
