"""Traffic while a fault acts, the record of every operation of it, and the outage that the record shows.

`plan` says what is sent, `traffic` starts and watches the process that sends it (`sender`, with `sending` and
`watches`), `profiles` are what its clients can do. `history` is the record of the operations, one line each,
`deliveries` that of what the watches delivered; `encoding` and `lines` say how they are kept. `outage` computes from a
record how long the cluster did not serve.
"""
