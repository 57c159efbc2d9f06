"""Traffic while a fault acts, the record of every operation of it, and the outage that the record shows.

`plan` says what is sent, `traffic` starts and watches the process that sends it (`sender`), `history` is the record,
one line an operation, and `outage` computes from a record how long the cluster did not serve.
"""
