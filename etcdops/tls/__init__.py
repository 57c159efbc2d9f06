"""Mutual TLS that etcdops makes itself: an authority for each cluster, pairs for its members, and for the operator.

In the order in which they build on each other:

    layout        where the files are, and a specification that names them
    authority     makes an authority, and issues what it signs
    leaves        the files of a cluster: made where they are missing, and looked at before a member starts
    expiry        what a certificate says, and when it ends
    serving       what members really serve, and whom they turn away, by real handshakes
    showing       the certificates here, and as they are served
    renewing      new pairs for members that run
"""
