"""Docker: its engine, Compose, images and logs, through the `docker` command on a host."""
