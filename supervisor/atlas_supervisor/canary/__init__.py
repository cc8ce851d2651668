"""Feature canaries in the daemon: from the rings of worker processes to a share and a verdict.

At each poll `service.py` runs this pipeline:

    worker process      writes an event per decision and outcome  worker/…/atlas_worker/canary
      | ring file                                                 layout: atlas_worker/contract/ring
      v
    ring_reader         reads one ring, validates it
    call_collector      reads all rings, finds new and exited processes
      | events by ring
      v
    evidence            routes events; everything below it is pure and in stats/
      stats/outcomes      open calls -> outcomes and tallies
      stats/windows       outcomes and open calls -> windows, in order of assignment
      stats/rollups       tallies -> minutes and hours, the last hour
      stats/round_evidence  windows -> e-values, with the bets of error_evidence and
                          latency_evidence
      stats/decision      e-values of all rounds -> verdict, with sample_ratio
      | verdict
      v
    stats/ramp          verdict, step time or an operator's action -> next state of a feature
    policy              next state -> share and epoch -> deploy_state.json, which workers read
    persistence         counts, evidence, epochs and ring positions -> atlas.db, one transaction;
                        only then is the space in the rings released

What readers see: `report` (status, report, suggestions), with `stats/explain`.
"""
