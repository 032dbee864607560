"""Errors that people see. Each carries the exit code that the command line ends with.

    MinerError
    +-- UserError       2    input, job file or environment; the message names value, place and remedy
    +-- BudgetReached   4    the next request would pass the job's budget; what was paid for is kept
    +-- JudgeDrift      6    (miner.canaries) the judge no longer recognises passages that are known to be relevant
    +-- ProviderStop    5    the provider refuses every further request (key, quota, model), or gives no answer at all;
                             the cluster that did the work is gone

The other exit codes: 0 all done, 3 done but some LLM rows have no usable answer, 130 interrupted.
"""


class MinerError(Exception):
    exit_code = 1


class UserError(MinerError):
    exit_code = 2


class BudgetReached(MinerError):
    exit_code = 4


class ProviderStop(MinerError):
    exit_code = 5
