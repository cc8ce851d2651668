"""A fleet: many machines, one rollout, one kill switch.

Each machine keeps its own supervisor with all of its gates. What must be agreed is agreed in etcd
(`engine`), as documents under one prefix (`documents`):

    etcd                         this machine
    semaphore, rollout  ------>  agent: takes a slot, deploys with its own gates, gives it back
    kill                ------>  kill switch: written to disk, then applied, then acknowledged
    present/HOST        <------  presence: version, health, last deploy; under a lease
    evidence/HOST       <------  cumulative counts of the canary's calls

With etcd away a machine goes on by itself: what it knows stays, and it takes no new slot.
"""
