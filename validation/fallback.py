"""Who judges a rule without a compiled form? Great Expectations, which is loaded when the first such rule is met."""

import pyarrow as pa

from validation.contract import Contract
from validation.verdict import Verdict


def great_expectations(contract: Contract, table: pa.Table) -> Verdict:
    """The verdict of `validation.suite.judge`."""
    # Takes seconds and hundreds of megabytes: not before a rule needs it.
    from validation.suite import judge

    return judge(contract, table)
